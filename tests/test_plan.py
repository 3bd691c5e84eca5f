"""Plans: nodes are shared, keys are complete, and the reasons for running are right."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.checks.catalogue import CHECKS
from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.errors import RecipeError
from pipeline.hashing import tagged_digest
from pipeline.planning import KEY_TAG, Plan, build_plan, explain, node_preimage, node_status
from pipeline.recipe import load_recipe_file
from pipeline.source import resolve_source
from pipeline.store import StageRecord
from tests.checkpoints import build_text_classifier
from tests.recipes import FP32, INT8, RTX, write_recipe


def _plan(tmp_path: Path, checkpoint: Path, **changes: Any) -> Plan:
    loaded = load_recipe_file(write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes))
    memory = DigestMemory(tmp_path / "memory.json")
    source = resolve_source(loaded.recipe.model.source, recipe_directory=tmp_path, memory=memory)
    data = {
        use: resolve_data(spec, directory=tmp_path, memory=memory)
        for use, spec in loaded.recipe.data.specs().items()
    }
    return build_plan(loaded.recipe, source, data, loaded.where)


def _names(plan: Plan) -> list[str]:
    return [node.name for node in plan.nodes]


def _keys(plan: Plan) -> dict[str, str]:
    """Every node's key, with each output standing for its key: equal iff nothing differs."""
    keys: dict[int, str] = {}
    for node in plan.nodes:
        digests = {
            port: keys[ref.node] if hasattr(ref, "node") else plan.group_content(ref.group)
            for port, ref in node.inputs.items()
        }
        keys[node.index] = tagged_digest(KEY_TAG, node_preimage(node, digests))
    return {plan.nodes[index].name: key for index, key in keys.items()}


def test_equal_prefixes_are_one_node(tmp_path: Path, sentence_encoder: Path) -> None:
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32, INT8, RTX])
    names = _names(plan)
    for once in ("export", "simplify", "fuse", "quantize_dynamic", "cast", "samples", "reference"):
        assert names.count(once) == 1
    assert len(names) == len(set(names))


def test_a_target_option_splits_the_chain_where_it_matters(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    other = {**RTX, "simplify": {"tool": "onnxslim"}}
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32, other])
    stages = [node.stage.name for node in plan.nodes]
    assert stages.count("export") == 1
    assert stages.count("simplify") == 2


def test_each_compute_capability_is_a_node_of_its_own(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    target = {**RTX, "compute_capability": ["sm89", "sm120"]}
    names = _names(_plan(tmp_path, sentence_encoder, targets=[target]))
    assert {"engine@rtx-fp16-sm89", "engine@rtx-fp16-sm120"} <= set(names)


def test_changing_one_option_changes_that_node_and_what_hangs_on_it(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    timed: dict[str, Any] = {"benchmark": {"shapes": [[1, 8]]}}
    before = _keys(_plan(tmp_path, sentence_encoder, targets=[FP32, INT8], **timed))
    changed = copy.deepcopy(INT8)
    changed["quantization"]["per_channel"] = False
    after = _keys(_plan(tmp_path, sentence_encoder, targets=[FP32, changed], **timed))
    different = {name for name in before if before[name] != after[name]}
    checks = {check.name for check in CHECKS} | {check.stage.name for check in CHECKS}
    assert {name for name in different if name.split("@")[0] not in checks} == {
        "quantize_dynamic",
        "validate@cpu-int8-quantize_dynamic",
        "benchmark@cpu-int8",
    }
    assert not any(name.endswith(("-export", "-simplify", "-fuse")) for name in different)


def _flip(node: Any, factor: str) -> dict[str, Any]:
    preimage = node_preimage(node, dict.fromkeys(node.inputs, "0" * 64))
    changed = copy.deepcopy(preimage)
    value = changed[factor]
    if isinstance(value, dict):
        name = min(value, default="new")
        changed[factor] = {**value, name: "other"}
    else:
        changed[factor] = f"{value}-other"
    return changed


def test_every_factor_of_a_key_changes_it_and_is_named(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    plan = _plan(tmp_path, sentence_encoder, benchmark={})
    node = next(node for node in plan.nodes if node.stage.name == "benchmark")
    preimage = node_preimage(node, dict.fromkeys(node.inputs, "0" * 64))
    record = _record(preimage)
    assert set(preimage) == {
        "stage", "stage_version", "code", "component", "config", "inputs", "packages", "python",
        "platform", "machine",
    }  # fmt: skip
    for factor in preimage:
        changed = _flip(node, factor)
        assert tagged_digest(KEY_TAG, changed) != tagged_digest(KEY_TAG, preimage), factor
        assert explain(changed, record), factor


def test_what_does_not_matter_is_in_no_key(tmp_path: Path, sentence_encoder: Path) -> None:
    import shutil

    before = _keys(_plan(tmp_path / "a", sentence_encoder))
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(sentence_encoder, moved, copy_function=shutil.copy)
    (moved / "README.md").write_text("another text")
    after = _keys(_plan(tmp_path / "b", moved, name="other-name"))
    assert before == after


def _record(preimage: dict[str, Any]) -> StageRecord:
    return StageRecord(
        key=tagged_digest(KEY_TAG, preimage),
        preimage=preimage,
        tree="0" * 64,
        facts={},
        wall_time_s=0.0,
        peak_rss_mib=0.0,
        created_at="2026-01-01T00:00:00+00:00",
    )


class _Records:
    def __init__(self, last: StageRecord | None) -> None:
        self.last = last

    def find(self, _: str) -> StageRecord | None:
        return None

    def remembered(self, _: str) -> StageRecord | None:
        return self.last


def test_the_reason_names_the_option_and_both_values(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32, INT8])
    node = next(node for node in plan.nodes if node.name == "quantize_dynamic")
    (parent,) = node.parents()
    trees = {parent: "0" * 64}
    preimage = node_preimage(node, {"model": "0" * 64})
    preimage["config"]["per_channel"] = False  # type: ignore[index,call-overload]
    status = node_status(plan, node, _Records(_record(preimage)), trees)
    assert status.reasons == ("config.per_channel: false -> true",)


def test_a_node_below_one_that_must_run_says_so(tmp_path: Path, sentence_encoder: Path) -> None:
    plan = _plan(tmp_path, sentence_encoder)
    node = next(node for node in plan.nodes if node.name == "simplify")
    status = node_status(plan, node, _Records(None), {})
    assert status.key is None
    assert status.reasons == ("input `model` comes from `export`, which must run",)


def test_more_tokens_than_positions_are_refused(tmp_path: Path, sentence_encoder: Path) -> None:
    shapes = {
        "batch": {"min": 1, "opt": 2, "max": 4},
        "sequence": {"min": 2, "opt": 8, "max": 100_000},
    }
    with pytest.raises(RecipeError, match="100000 tokens are asked for, and the checkpoint has"):
        _plan(tmp_path, sentence_encoder, shapes=shapes)


def test_a_figure_that_no_sample_can_give_is_refused(tmp_path: Path) -> None:
    checkpoint = build_text_classifier(tmp_path / "checkpoint", labels=3)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a", "label": 0}\n')
    metrics = {"top5_accuracy": {"score": {"min": 0.5}}}
    with pytest.raises(RecipeError, match="it says nothing of 3 classes") as caught:
        _plan(
            tmp_path,
            checkpoint,
            model={"source": str(checkpoint), "task": "text-classification"},
            data={"evaluation": {"source": str(data), "samples": "all", "label": "label"}},
            gates={"parity": {"relative_l2": {"max": 1}}, "quality": {"metrics": metrics}},
        )
    assert "gates.quality.metrics.top5_accuracy" in caught.value.where


def test_a_task_that_does_not_fit_is_refused(tmp_path: Path, sentence_encoder: Path) -> None:
    model = {"source": str(sentence_encoder), "task": "text-classification"}
    with pytest.raises(RecipeError, match="text-classification"):
        _plan(tmp_path, sentence_encoder, model=model)


def test_an_unknown_task_names_the_nearest(tmp_path: Path, sentence_encoder: Path) -> None:
    model = {"source": str(sentence_encoder), "task": "feature-extractoin"}
    with pytest.raises(RecipeError, match="feature-extraction"):
        _plan(tmp_path, sentence_encoder, model=model)


BATCH = {"min": 1, "opt": 2, "max": 4}
SEQUENCE = {"min": 2, "opt": 8, "max": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": {"batch": BATCH}}, r"shapes: `shapes.sequence` is missing"),
        (
            {"shapes": {"batch": BATCH, "sequence": SEQUENCE, "num_choices": BATCH}},
            r"shapes.num_choices: .*feature-extraction` have no axis `num_choices`",
        ),
        (
            {"benchmark": {"shapes": [[1]]}},
            r"benchmark.shapes\[0\]: \[1\] has 1 sizes, and inputs .* have 2 axes",
        ),
        (
            {"gates": {"parity": {"relative_l2": {"max": 1}}, "quality": {"drop": {"max": 0}}}},
            r"gates.quality: task `feature-extraction` has no answers",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused_with_its_place(
    tmp_path: Path, sentence_encoder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        _plan(tmp_path, sentence_encoder, **changes)
    assert re.search(message, str(caught.value))
    assert "recipe.yaml:" in caught.value.where


def test_static_quantisation_without_calibration_data_is_refused(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    target = {**INT8, "quantization": {"mode": "static"}}
    with pytest.raises(RecipeError, match=r"no `data.calibration`") as caught:
        _plan(tmp_path, sentence_encoder, targets=[target])
    assert "calibration: {source:" in caught.value.hint


def test_calibration_data_is_a_node_of_its_own_shared_by_both_placements(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    builtin = {"source": "builtin:stdlib-docstrings", "samples": 4}
    static = {**INT8, "quantization": {"mode": "static"}}
    engine = {**RTX, "name": "rtx-int8", "precision": "int8", "quantization": {"mode": "static"}}
    plan = _plan(
        tmp_path,
        sentence_encoder,
        targets=[static, engine],
        data={"evaluation": builtin, "calibration": builtin},
    )
    names = _names(plan)
    assert "samples@calibration" in names
    assert [node.stage.name for node in plan.nodes].count("calibrate") == 1


@pytest.mark.parametrize("is_of_target", [False, True])
def test_a_tolerance_of_a_stage_that_there_is_not_is_refused(
    tmp_path: Path, sentence_encoder: Path, is_of_target: bool
) -> None:
    own: dict[str, Any] = {"stages": {"fues": {"noise": 1e-4}}}
    gates = {"targets": {FP32["name"]: own}} if is_of_target else own
    gates = {"parity": {"cosine_similarity": {"min": 0.9}}, **gates}
    with pytest.raises(RecipeError, match="no stage `fues` - did you mean `fuse`") as caught:
        _plan(tmp_path, sentence_encoder, gates=gates)
    assert "recipe.yaml" in str(caught.value.where)


@pytest.mark.parametrize("name", ["fp8_gemms", "bf16_weights", "quantized_weights"])
def test_a_limit_that_no_target_of_its_precision_reports_is_refused_with_its_place(
    name: str, tmp_path: Path, sentence_encoder: Path
) -> None:
    gates = {"parity": {"cosine_similarity": {"min": 0.9}}, "coverage": {name: {"min": 1.0}}}
    with pytest.raises(RecipeError) as caught:
        _plan(tmp_path, sentence_encoder, targets=[FP32, RTX], gates=gates)
    assert f"reports `{name}`" in caught.value.message
    assert caught.value.where.endswith(f": gates.coverage.{name}")
    assert "fp16_gemms" in caught.value.hint
    assert "fp16_weights" in caught.value.hint
    assert name not in caught.value.hint


def test_a_limit_of_what_one_target_of_several_reports_stands(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    names = ("fp16_gemms", "quantized_weights", "fused_attention")
    limits = {name: {"min": 0.5} for name in names}
    gates = {"parity": {"cosine_similarity": {"min": 0.9}}, "coverage": limits}
    _plan(tmp_path, sentence_encoder, targets=[FP32, INT8, RTX], gates=gates)
