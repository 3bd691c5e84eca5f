"""Findings name the stage and the layer in which a fault was made; failed builds are explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, BuildResult, build
from pipeline.judging import judged
from pipeline.planning import build_plan
from pipeline.publish import read_manifest
from pipeline.recipe import load_recipe_file
from pipeline.recipe.types import Gates
from tests.decoders import build_tiny_llama
from tests.mutants.bench import Bench, Damage, Scene
from tests.mutants.models import find_model, plan_model
from tests.mutants.surgery import Graph
from tests.recipes import FP32, INT8, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.planning import Plan
    from pipeline.report.schema import Report

LAYER = "encoder.layer.1.attention.self.key"
DENSE = "encoder.layer.1.attention.output.dense"
"""In graphs for engines, where Q, K and V are one product: that has no layer, and what reads it one above."""


def _value(scene: Scene, operators: tuple[str, ...]) -> tuple[Graph, Any]:
    """The graph to damage, and the node of the layer in it that one of these operators is."""
    graph = Graph.read(scene.good)
    export = scene.good if scene.node.stage.name == "export" else scene.result("export")
    layers = json.loads((export / "scopes.json").read_text())["layers"]
    for layer in (LAYER, DENSE):
        for node in graph.all(*operators):
            if layers.get(node.output[0]) == layer:
                return graph, node
    raise AssertionError(f"no {operators} of {LAYER}")


def _layer_of(target: str) -> str:
    return DENSE if target.startswith("rtx") else LAYER


def _finish(scene: Scene, graph: Graph) -> Mapping[str, Any]:
    graph.write(scene.output)
    for file in scene.good.iterdir():  # what else belongs to the result, such as its scopes
        if file.name not in {"model.onnx", "MANIFEST.json"}:
            shutil.copyfile(file, scene.output / file.name)
    return scene.facts


def _wrong_weight(scene: Scene) -> Mapping[str, Any]:
    graph, node = _value(scene, ("MatMul",))
    name = node.input[1]
    maker = graph.maker(name)
    if maker is not None and maker.op_type == "Transpose":
        name = maker.input[0]
    graph.change(name, lambda weight: weight * 1.01)
    return _finish(scene, graph)


def _weight_scale_times_four(scene: Scene) -> Mapping[str, Any]:
    graph, node = _value(scene, ("MatMul",))
    dequantize = graph.maker(node.input[1])
    assert dequantize is not None
    graph.change(dequantize.input[1], lambda scale: scale * 4)
    return _finish(scene, graph)


def _product_scale_times_four(scene: Scene) -> Mapping[str, Any]:
    graph, scaled = _value(scene, ("Mul",))
    scales = graph.maker(scaled.input[1])
    assert scales is not None
    graph.change(scales.input[1], lambda scale: scale * 4)
    return _finish(scene, graph)


def _overflow(scene: Scene) -> Mapping[str, Any]:
    """One column of a bias is infinite in float16."""
    graph, node = _value(scene, ("Add",))

    def overflow(bias: Any) -> Any:
        bias[0] = float("inf")
        return bias

    graph.change(node.input[1], overflow)
    return _finish(scene, graph)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def _plan(bench: Bench, target: str) -> Plan:
    plan = plan_model(find_model("tiny-encoder"), [target], bench.recipes, bench.store)
    return build_plan(plan.recipe, plan.source, plan.data, diagnosed=[target])


@pytest.mark.parametrize(
    ("stage", "target", "damage", "gate"),
    [
        ("export", "fp32", _wrong_weight, "stages"),
        ("simplify", "fp32", _wrong_weight, "stages"),
        ("fuse", "fp32", _wrong_weight, "stages"),
        ("cast", "rtx-fp16", _wrong_weight, "stages"),
        ("cast", "rtx-fp16", _overflow, "stages"),
        ("quantize_static", "static", _weight_scale_times_four, ""),
        ("quantize_static", "rtx-int8", _weight_scale_times_four, ""),
        ("quantize_dynamic", "dynamic", _product_scale_times_four, ""),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_fault_is_found_in_its_stage_and_its_layer(
    bench: Bench,
    stage: str,
    target: str,
    damage: Callable[[Scene], Mapping[str, Any]],
    gate: str,
) -> None:
    fault = Damage(name=f"{stage} {target} {damage.__name__}", node=stage, apply=damage)
    report = bench.mutant(_plan(bench, target), fault)
    assert report.verdict == "failed", report.reasons
    (finding,) = report.findings
    assert (finding.target, finding.stage) == (target, stage), finding
    layer = _layer_of(target)
    assert finding.layer == layer, finding.sentence
    assert f"`{stage}`" in finding.sentence
    assert f"`{layer}`" in finding.sentence
    if gate:
        assert f"the gate `{gate}`" in finding.sentence
    _require_only_one_departs(report, stage, layer)


def _require_only_one_departs(report: Report, stage: str, layer: str) -> None:
    """What is behind the fault is far away too, but adds nothing of its own; nor does what is before."""
    nodes = {node.name: node for node in report.nodes}
    for entry in report.targets[0].checks:
        if entry.check != "layers":
            continue
        facts = nodes[entry.node].facts
        layers = {row["layer"] for row in facts["layers"] if _departs(row, facts["limit"])}
        assert layers == ({layer} if entry.stage == stage else set()), entry


def _departs(row: Mapping[str, Any], limit: float) -> bool:
    return row["added"] is None or row["added"] > limit


@pytest.mark.parametrize("target", ["fp32", "dynamic", "static", "rtx-fp16", "rtx-int8"])
def test_no_layer_of_a_good_conversion_departs(bench: Bench, target: str) -> None:
    report = bench.good(_plan(bench, target))
    assert report.verdict == "passed", report.reasons
    checks = [entry for entry in report.targets[0].checks if entry.check == "layers"]
    assert [entry.of for entry in checks] == [link.node for link in report.targets[0].parity]
    nodes = {node.name: node for node in report.nodes}
    for entry in checks:
        facts = nodes[entry.node].facts
        assert facts["first"] is None, (entry, facts["worst"][:3])
        assert not facts.get("warnings")
        assert len(facts["layers"]) > 10
        assert all(row["noise"] is not None for row in facts["layers"])
        assert "encoder.layer.1.output.dense" in {row["layer"] for row in facts["layers"]}
    assert nodes[checks[0].node].facts["against"] == "torch"


def test_limits_that_only_the_end_breaks_name_the_layers_that_add_most(bench: Bench) -> None:
    report = bench.good(_plan(bench, "static"))
    strict = Gates.model_validate({"parity": {"cosine_similarity": {"min": 0.999999}}})
    (finding,) = judged(report, strict, declared={}).findings
    assert finding.stage == "quantize_static"
    assert "no stage does worse than its arithmetic allows" in finding.sentence
    check = next(
        c for c in report.targets[0].checks if c.check == "layers" and c.of == finding.node
    )
    facts = next(node.facts for node in report.nodes if node.name == check.node)
    rows = {row["name"]: row for row in facts["layers"]}
    assert finding.layer == rows[facts["worst"][0]]["layer"]
    assert f"add most are `{finding.layer}`" in finding.sentence


# --- builds -------------------------------------------------------------------------------------

STRICT = {"parity": {"cosine_similarity": {"min": 0.999999}}}


def _build(tmp_path: Path, checkpoint: Path, **changes: Any) -> BuildResult:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", checkpoint, targets=[FP32, INT8], gates=STRICT, **changes
    )
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1)
    return build(load_recipe_file(recipe), options)


@pytest.mark.usefixtures("store")
def test_a_failed_build_is_explained_once(tmp_path: Path, sentence_encoder: Path) -> None:
    result = _build(tmp_path, sentence_encoder)
    assert result.verdict == "failed"
    report = result.report()
    explaining = [node for node in report.nodes if node.is_diagnosis]
    assert {node.stage for node in explaining} >= {"compare_layers"}
    assert all(node.state == "ran" for node in explaining)
    (finding,) = report.findings
    assert finding.target == "cpu-int8"
    assert finding.layer.startswith(("encoder.", "embeddings."))
    again = _build(tmp_path, sentence_encoder)
    assert again.is_up_to_date
    assert again.directory == result.directory
    assert again.report() == report


@pytest.mark.usefixtures("store")
def test_an_explanation_that_fails_changes_no_verdict_and_is_tried_again(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    limits = {"stages": {"compare_layers": {"time_s": 0.01}}}
    first = _build(tmp_path, sentence_encoder, limits=limits)
    assert first.verdict == "failed"
    report = first.report()
    failed = [node for node in report.nodes if node.failure is not None]
    assert failed
    assert all(node.is_diagnosis for node in failed)
    assert all(node.name not in reason for node in failed for reason in report.reasons)
    assert any(
        warning.startswith(f"{failed[0].name}: the failure is not explained further")
        for warning in report.warnings
    )
    second = _build(tmp_path, sentence_encoder, limits=limits)
    assert not second.is_up_to_date
    assert second.verdict == "failed"
    assert read_manifest(second.directory)["verdict"] == "failed"
    assert [path.name for path in second.directory.parent.iterdir()] == [second.directory.name]


@pytest.mark.slow
def test_a_decoder_that_is_only_slow_is_not_explained_by_layers(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    byte_tokenizer().save_pretrained(checkpoint)
    build_tiny_llama(checkpoint, vocab_size=258)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        checkpoint,
        model={"source": str(checkpoint), "task": "text-generation"},
        targets=[FP32],
        gates={
            "parity": {"cosine_similarity": {"min": 0.9}},
            "checks": {"generation_speed": {"tokens": 2, "decode_tokens_per_s": 1e12}},
        },
    )
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1)
    result = build(load_recipe_file(recipe), options)
    assert result.verdict == "failed"
    assert "generation_speed gate" in result.reasons[0]
    report = result.report()
    assert report.findings == ()
    assert not [node.name for node in report.nodes if node.is_diagnosis]
