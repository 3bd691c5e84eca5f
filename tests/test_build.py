"""Whole builds of a tiny checkpoint: what is published, what is refused, what is never stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pipeline
from pipeline.build import BuildOptions, BuildResult, build
from pipeline.errors import ArtifactError, GateFailed
from pipeline.publish import read_manifest, verify_artifact
from pipeline.recipe import load_recipe_file
from tests.recipes import FP32, INT8, RTX, forget, write_recipe

pytestmark = pytest.mark.usefixtures("store")  # at tmp_path/store: what is not changed is a hit


def _build(tmp_path: Path, checkpoint: Path, **changes: Any) -> BuildResult:
    recipe = write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes)
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1)
    return build(load_recipe_file(recipe), options)


def _ran(result: BuildResult) -> set[str]:
    return {outcome.node.name for outcome in result.outcomes if outcome.has_run}


@pytest.fixture
def checkpoint(tmp_path: Path, sentence_encoder: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return Path(shutil.copytree(sentence_encoder, tmp_path / "checkpoint"))


def test_a_build_publishes_a_verified_artifact_and_a_second_one_does_nothing(
    tmp_path: Path, checkpoint: Path
) -> None:
    first = _build(tmp_path, checkpoint, targets=[FP32, INT8, RTX], gates=_gates())
    assert first.verdict == "passed", first.reasons
    assert verify_artifact(first.directory) == ()
    names = {path.relative_to(first.directory).as_posix() for path in first.directory.rglob("*")}
    assert {
        "report.json", "report.md", "report.html", "report.sarif", "junit.xml", "recipe.yaml",
        "manifest.json",
        "cpu-fp32/model.onnx", "cpu-fp32/config.json", "cpu-fp32/tokenizer.json",
        "cpu-int8/model.onnx", "rtx-fp16/model.onnx", "rtx-fp16/model.sm89.engine",
    } <= names  # fmt: skip
    assert (tmp_path / "artifacts/tiny/latest").resolve() == first.directory.resolve()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "artifacts").rglob("*")}
    second = _build(tmp_path, checkpoint, targets=[FP32, INT8, RTX], gates=_gates())
    assert second.is_up_to_date
    assert second.directory == first.directory
    assert not _ran(second)
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "artifacts").rglob("*")
    }


def _gates(**changes: Any) -> dict[str, Any]:
    return {
        "parity": {"cosine_similarity": {"min": 0.8}},
        "allow_not_run": ["device_parity", "speed"],
        **changes,
    }


def test_the_manifest_tells_what_everything_was_made_from(
    tmp_path: Path, checkpoint: Path
) -> None:
    result = _build(tmp_path, checkpoint)
    manifest = read_manifest(result.directory)
    assert manifest["source"]["files"].keys() >= {"config.json", "model.safetensors"}
    assert manifest["environment"]["packages"]["torch"]
    assert set(manifest["stage_keys"]) == {outcome.node.name for outcome in result.outcomes}
    assert manifest["recipe"]["name"] == "tiny"


def test_only_what_hangs_on_a_changed_option_runs_again(tmp_path: Path, checkpoint: Path) -> None:
    _build(tmp_path, checkpoint, targets=[FP32, INT8])
    changed = {**INT8, "quantization": {"mode": "dynamic", "per_channel": False}}
    second = _build(tmp_path, checkpoint, targets=[FP32, changed])
    assert _ran(second) == {
        "quantize_dynamic",
        "validate@cpu-int8-quantize_dynamic",
        "invariance@cpu-int8-quantize_dynamic",
        "check_quantization",
        "compare_layers",
    }


def test_changed_gates_are_judged_anew_without_running_anything(
    tmp_path: Path, checkpoint: Path
) -> None:
    first = _build(tmp_path, checkpoint)
    assert first.verdict == "passed"
    strict = {"parity": {"max_abs_diff": {"max": 1e-12}}}
    second = _build(tmp_path, checkpoint, gates=strict)
    # What explains the failure does run.
    assert {name.partition("@")[0] for name in _ran(second)} == {"compare_layers"}
    assert second.verdict == "failed"
    assert any("max_abs_diff" in reason for reason in second.reasons)


def test_a_failed_gate_leaves_the_report_apart_and_never_moves_latest(
    tmp_path: Path, checkpoint: Path
) -> None:
    first = _build(tmp_path, checkpoint)
    second = _build(tmp_path, checkpoint, gates={"parity": {"sqnr_db": {"min": 1e6}}})
    assert second.directory.parent.name == "failed"
    assert (second.directory / "report.html").is_file()
    assert (tmp_path / "artifacts/tiny/latest").resolve() == first.directory.resolve()
    again = _build(tmp_path, checkpoint, gates={"parity": {"sqnr_db": {"min": 1e6}}})
    assert again.directory == second.directory
    assert again.verdict == "failed"


def test_the_api_raises_for_a_failed_gate_with_the_place_of_the_report(
    tmp_path: Path, checkpoint: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", checkpoint, gates={"parity": {"sqnr_db": {"min": 1e6}}}
    )
    with pytest.raises(GateFailed, match="sqnr_db") as caught:
        pipeline.convert(recipe, output=tmp_path / "artifacts", store=tmp_path / "store")
    assert Path(caught.value.where, "report.md").is_file()
    plan, statuses = pipeline.plan(recipe, store=tmp_path / "store")
    assert len(plan.nodes) == len(statuses)
    assert all(status.record is not None for status in statuses)


def test_the_api_opens_and_verifies_what_was_published(tmp_path: Path, checkpoint: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", checkpoint)
    artifact = pipeline.convert(recipe, output=tmp_path / "artifacts", store=tmp_path / "store")
    artifact.verify()
    model = artifact.target("cpu-fp32") / "model.onnx"
    assert model.is_file()
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"cpu-fp32/model.onnx"):
        pipeline.Artifact.open(artifact.path).verify()
    with pytest.raises(ArtifactError, match="not what it was"):
        pipeline.convert(recipe, output=tmp_path / "artifacts", store=tmp_path / "store")


def test_an_unallowed_gate_that_cannot_run_here_fails_the_build(
    tmp_path: Path, checkpoint: Path
) -> None:
    gates = {"parity": {"cosine_similarity": {"min": 0.9}}}
    result = _build(tmp_path, checkpoint, targets=[RTX], gates=gates)
    assert result.verdict == "failed"
    assert any("device_parity" in reason for reason in result.reasons)


@pytest.mark.slow
def test_a_target_that_is_too_slow_fails_its_speed_gate(tmp_path: Path, checkpoint: Path) -> None:
    gates = _gates(speed={"min_speedup_over_reference": 1000.0})
    result = _build(tmp_path, checkpoint, gates=gates, benchmark={"launches": 3})
    assert result.verdict == "failed"
    assert all("speed gate" in reason for reason in result.reasons)
    benchmark = result.report().targets[0].benchmark
    assert benchmark is not None
    assert {shape.shape for shape in benchmark.shapes} == {(1, 8), (2, 8)}


def test_two_builds_of_one_recipe_at_once_both_succeed(tmp_path: Path, checkpoint: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", checkpoint)
    command = [sys.executable, "-m", "pipeline", str(recipe), "--quiet"]
    for round_number in range(3):
        output = str(tmp_path / f"artifacts-{round_number}")
        running = [
            subprocess.Popen(
                [*command, "--store", str(tmp_path / "store"), "--output", output],
                stderr=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        errors = [process.communicate()[1] for process in running]
        assert [process.returncode for process in running] == [0, 0], errors


def test_the_published_recipe_is_the_one_that_was_built(tmp_path: Path, checkpoint: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", checkpoint)
    content = recipe.read_bytes()
    loaded = load_recipe_file(recipe)
    recipe.write_text("something else")
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store")
    assert (build(loaded, options).directory / "recipe.yaml").read_bytes() == content


def test_a_damaged_result_is_never_delivered(tmp_path: Path, checkpoint: Path) -> None:
    first = _build(tmp_path, checkpoint)
    fused = next(outcome for outcome in first.outcomes if outcome.node.name == "fuse")
    assert fused.record is not None
    model = tmp_path / "store/v1/trees" / fused.record.tree / "model.onnx"
    model.chmod(0o644)
    content = bytearray(model.read_bytes())
    content[len(content) // 3] ^= 4
    model.write_bytes(content)
    shutil.rmtree(tmp_path / "artifacts")
    second = _build(tmp_path, checkpoint)
    assert second.verdict == "passed", second.reasons
    assert _ran(second) == {"fuse"}
    assert second.directory.name == first.directory.name


# --- the two stale results of Olive 0.13 ------------------------------------------------------


def test_a_changed_evaluation_is_never_answered_from_the_store(
    tmp_path: Path, checkpoint: Path
) -> None:
    """Olive returned the old evaluation when metric, data and sample count had changed."""
    first = _build(tmp_path, checkpoint)
    data = {"evaluation": {"source": "builtin:stdlib-docstrings", "samples": 9, "seed": 1}}
    second = _build(tmp_path, checkpoint, data=data)
    assert {"samples", "reference", "validate@cpu-fp32-fuse"} <= _ran(second)
    assert "export" not in _ran(second)
    seen = [result.report().targets[0].parity[-1].parity for result in (first, second)]
    assert [parity.samples_seen for parity in seen if parity is not None] == [6, 9]


def test_replaced_weights_are_noticed_even_with_the_old_size_and_time(
    tmp_path: Path, checkpoint: Path
) -> None:
    """Olive kept the ranges of old data when the file behind the same name had changed."""
    targets = [INT8]
    first = _build(tmp_path, checkpoint, targets=targets)
    weights = checkpoint / "model.safetensors"
    stat = weights.stat()
    tensors = load_file(weights)
    name = next(n for n in sorted(tensors) if n.endswith("intermediate.dense.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name] * 100)
    save_file(tensors, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_size == stat.st_size
    second = _build(tmp_path, checkpoint, targets=targets)
    assert {"export", "quantize_dynamic", "reference"} <= _ran(second)
    assert second.directory != first.directory
    scale = _largest_scale(second.directory / "cpu-int8/model.onnx")
    assert scale > 50 * _largest_scale(first.directory / "cpu-int8/model.onnx") > 0


def _largest_scale(model: Path) -> float:
    import onnx
    from onnx import numpy_helper

    scales = [
        numpy_helper.to_array(tensor).max()
        for tensor in onnx.load(model).graph.initializer
        if tensor.name.endswith("_scale")
    ]
    return float(max(scales))


def test_a_stage_failure_is_an_error_with_a_report_and_not_remembered(
    tmp_path: Path, checkpoint: Path
) -> None:
    forget(tmp_path / "store", "export", "samples")
    result = _build(tmp_path, checkpoint, limits={"time_s": 0.2})
    assert result.verdict == "error"
    assert "failed" in result.directory.parts
    document = json.loads((result.directory / "report.json").read_text())
    failed = [node for node in document["nodes"] if node["state"] == "failed"]
    assert any(node["name"] == "export" for node in failed)
    again = _build(tmp_path, checkpoint)
    assert again.verdict == "passed", again.reasons
