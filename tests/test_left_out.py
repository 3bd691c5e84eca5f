"""Comparisons that a recipe leaves out: never of what is delivered, and told by plan, report and judge."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, build, open_store, prepare_plan
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.forecast import checkpoint_size, forecast, require_room
from pipeline.judging import judged
from pipeline.planning import plan_status
from pipeline.recipe import load_recipe_file
from pipeline.recipe.types import Gates
from pipeline.report import load_report
from pipeline.stages.base import INLINE_LIMIT_BYTES, NARROW_LIMIT_BYTES, Footprint
from tests.cli.commands import run_convert
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan

INT4 = {
    "name": "cpu-int4",
    "runtime": "onnxruntime",
    "precision": "int4",
    "quantization": {"mode": "weight_only"},
}
PARITY = {"parity": {"cosine_similarity_mean": {"min": 0.1}}}
LEFT_OUT = PARITY | {"stages": {"export": None, "quantize_weights": None}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=258)


def _write(tmp_path: Path, source: Path, gates: dict[str, Any], **changes: Any) -> Path:
    changes = {"model": {"source": str(source), "task": "text-generation"}} | changes
    changes = {"targets": [INT4]} | changes
    return write_recipe(tmp_path / "recipe.yaml", source, gates=gates, **changes)


def _plan(tmp_path: Path, source: Path, gates: dict[str, Any], **changes: Any) -> Plan:
    recipe = load_recipe_file(_write(tmp_path, source, gates, **changes))
    return prepare_plan(recipe, open_store(BuildOptions(store=tmp_path / "store")))


def test_graphs_are_left_out_with_the_checks_that_run_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    plan = _plan(tmp_path, checkpoint, LEFT_OUT)
    names = {node.name for node in plan.nodes}
    compared = {name for name in names if name.startswith("validate")}
    assert {name.rpartition("-")[2] for name in compared} == {"simplify", "fuse", "pack_weights"}
    (target,) = plan.targets
    assert {each.stage: each.checks for each in target.left_out} == {
        "export": ("generation",),
        "quantize_weights": ("layers",),
    }
    assert {"check_export", "check_quantization"} <= names  # they run nothing of the graph


def test_the_plan_says_what_is_left_out(tmp_path: Path, checkpoint: Path) -> None:
    recipe = _write(tmp_path, checkpoint, LEFT_OUT)
    text = run_convert("plan", str(recipe), cwd=tmp_path).stdout
    assert (
        "not run: `export` of `cpu-int4`: `gates.stages.export: null` leaves its comparison with the "
        "checkpoint out, and with it `generation`" in text
    )
    assert "not run: check `companions`" not in text
    recipe = _write(tmp_path, checkpoint, LEFT_OUT | {"checks": {"packing": None}})
    text = run_convert("plan", str(recipe), cwd=tmp_path).stdout
    assert "not run: check `packing` of `cpu-int4`: `gates.checks.packing: null`" in text
    found = json.loads(run_convert("plan", str(recipe), "--json", cwd=tmp_path).stdout)
    assert [each["stage"] for each in found["left_out"]] == ["export", "quantize_weights"]


@pytest.mark.parametrize("is_own", [False, True])
def test_what_is_delivered_is_always_compared(
    tmp_path: Path, checkpoint: Path, *, is_own: bool
) -> None:
    """`fuse` is on the way to one target, and delivered by the other."""
    gates: dict[str, Any] = PARITY | {"stages": {"fuse": None}}
    if is_own:
        gates = PARITY | {"targets": {"cpu-fp32": {"stages": {"fuse": None}}}}
    with pytest.raises(RecipeError, match="`fuse` makes what `cpu-fp32` delivers") as caught:
        _plan(tmp_path, checkpoint, gates, targets=[INT4, FP32])
    assert "fuse" in caught.value.where
    own = PARITY | {"targets": {"cpu-int4": {"stages": {"fuse": None}}}}
    plan = _plan(tmp_path, checkpoint, own, targets=[INT4, FP32])
    assert [len(target.left_out) for target in plan.targets] == [1, 0]


@pytest.mark.slow
def test_a_build_reports_what_it_left_out_and_another_judge_does_not_accept_it(
    tmp_path: Path, checkpoint: Path
) -> None:
    # Of these two, one only explains failures.
    gates = LEFT_OUT | {"checks": {"layers": None, "packing": None}}
    recipe = load_recipe_file(_write(tmp_path, checkpoint, gates, benchmark=None))
    result = build(recipe, BuildOptions(output=tmp_path / "out", store=tmp_path / "store"))
    assert result.verdict == "passed", result.reasons
    report = load_report(result.directory / "report.json")
    unrun = [gate for gate in report.gates if gate.verdict == "not_run"]
    assert [gate.metric for gate in unrun] == ["export.noise", "quantize_weights.noise", "packing"]
    assert all(gate.is_allowed for gate in unrun)
    for name in ("report.md", "report.html"):
        text = (result.directory / name).read_text(encoding="utf-8")
        assert "gates.stages.export: null" in text, name
        assert "gates.checks.packing: null" in text, name
    anew = judged(report, Gates.model_validate(PARITY), declared={})
    assert anew.verdict == "failed"
    assert any("does not leave `export` out" in reason for reason in anew.reasons)
    assert any("null` leaves it out; now it does not" in reason for reason in anew.reasons)
    assert not anew.findings  # nothing accuses what nobody looked at


def test_what_does_not_fit_is_named_with_the_lines_that_leave_it_out(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(tmp_path, checkpoint, PARITY)
    found = forecast(plan, plan_status(plan, open_store(BuildOptions(store=tmp_path / "store"))))
    remedies = {node.name: node.remedy for node in found.nodes}
    assert remedies["validate@cpu-int4-fuse"] == "`gates: {stages: {fuse: null}}`"
    assert remedies["check_quantization"] == "`gates: {checks: {quantization: null}}`"
    assert remedies["validate@cpu-int4-pack_weights"] == remedies["export"] == ""
    large = replace(
        found,
        nodes=tuple(
            replace(node, memory_bytes=(1 << 60) + len(node.name))
            for node in found.nodes
            if node.remedy
        ),
    )
    with pytest.raises(EnvironmentMissing, match="will need about") as caught:
        require_room(large, store=tmp_path, output=tmp_path)
    assert "`gates: {stages: {fuse: null}}`" in caught.value.hint
    assert "`gates: {checks: {quantization: null}}`" in caught.value.hint
    assert checkpoint_size(plan.source).is_narrow is False


def test_large_checkpoints_in_16_bits_take_half_of_the_disk_between_stages() -> None:
    float_graph = Footprint(disk_per_weight=1.0, keeps_weights=True)
    large = NARROW_LIMIT_BYTES + 4
    assert float_graph.disk_share_of(large, is_narrow=True) == 0.5
    assert float_graph.disk_share_of(large, is_narrow=False) == 1.0
    assert float_graph.disk_share_of(NARROW_LIMIT_BYTES, is_narrow=True) == 1.0
    assert Footprint(disk_per_weight=1.0).disk_share_of(large, is_narrow=True) == 1.0


def test_memory_of_what_is_mapped_grows_with_the_largest_weight_alone() -> None:
    mapped = Footprint(
        base_mib=1, memory_per_weight=3.0, memory_outside=0.0, memory_per_largest=2.0
    )
    small, large = INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 4
    assert mapped.memory_bytes(small, 100) == (1 << 20) + 3 * small
    assert (
        mapped.memory_bytes(large, 100) == mapped.memory_bytes(2 * large, 100) == (1 << 20) + 200
    )
    runs = replace(mapped, runs_model=True)
    assert runs.memory_bytes(large, 100, to_run=0.5) == (1025 << 20) + 200 + large // 2
