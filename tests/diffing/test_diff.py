"""`convert diff`: what two versions of an artifact differ in, and thresholds that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.types import BenchmarkResult, Interval, ShapeResult, Timing
from pipeline.build import BuildOptions, build
from pipeline.diffing.run import DiffOptions, compare_artifacts
from pipeline.diffing.thresholds import Thresholds
from pipeline.diffing.types import Difference, NumberChange, Side, TargetChange
from pipeline.errors import ArtifactError, RecipeError
from pipeline.recipe import load_recipe_file
from pipeline.store import Store
from tests.checkpoints import build_encoder, build_text_classifier
from tests.cli.commands import run_convert
from tests.recipes import FP32, INT8, write_recipe


class Built:
    """Artifacts of one checkpoint: both targets in 8 bits, and one of them kept partly float."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        checkpoint = build_encoder(folder / "encoder")
        self.old = self.build("old", checkpoint, targets=[FP32, INT8])
        self.new = self.build(
            "new",
            checkpoint,
            targets=[INT8],
            shapes={
                "batch": {"min": 1, "opt": 2, "max": 4},
                "sequence": {"min": 2, "opt": 8, "max": 16},
            },
            gates={"parity": {"cosine_similarity": {"min": 0.5}}},
        )
        # The same name in both, but float in the one and 8 bits in the other.
        self.float = self.build("float", checkpoint, targets=[FP32 | {"name": "cpu-int8"}])
        self.other = self.build(
            "other",
            build_text_classifier(folder / "classifier"),
            model={"source": str(folder / "classifier"), "task": "text-classification"},
        )

    def build(self, file: str, checkpoint: Path, **changes: Any) -> Path:
        path = write_recipe(self.folder / f"{file}.yaml", checkpoint, **changes)
        options = BuildOptions(
            output=self.folder / "artifacts" / file, store=self.folder / "store", threads=1
        )
        result = build(load_recipe_file(path), options)
        assert result.verdict == "passed", result.reasons
        return result.directory

    def compare(self, old: Path, new: Path, **thresholds: Any) -> Difference:
        options = DiffOptions(has_speed=False, thresholds=Thresholds(**thresholds))
        return compare_artifacts(old, new, self.store, options)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("diff"))


def test_the_same_graph_is_told_as_such_and_a_lost_target_too(built: Built) -> None:
    found = built.compare(built.old, built.new, no_removed=True)
    by_name = {target.name: target for target in found.targets}
    same = by_name["cpu-int8"]
    assert [graph.is_same_file for graph in same.graphs] == [True]
    assert same.not_run_reason == "the graphs are the same, byte for byte"
    assert {change.change for change in same.parity} == {0.0}
    assert by_name["cpu-fp32"].state == "removed"
    assert [(c.target, c.threshold) for c in found.crossed] == [("cpu-fp32", "no_removed")]
    assert "gates.parity.cosine_similarity.min" in {change.name for change in found.recipe}


def test_quantising_shows_in_layers_size_and_outputs(built: Built) -> None:
    found = built.compare(built.float, built.old)
    target = next(target for target in found.targets if target.name == "cpu-int8")
    assert target.has_same_samples
    (graph,) = target.graphs
    changed = [layer for layer in graph.layers if layer.old == "float" and layer.new == "int8"]
    assert changed
    assert target.size is not None
    assert target.size.change is not None
    assert target.size.change < 0
    (distance, *_) = target.distances
    assert distance.metrics.relative_l2 is not None
    assert 1e-4 < distance.metrics.relative_l2 < 1
    assert found.crossed == ()


@pytest.mark.parametrize(
    "threshold", [{"max_growth": 1.01}, {"max_cosine_loss": 1e-9}, {"max_slowdown": 1.05}]
)
def test_every_threshold_fails_a_worse_artifact(built: Built, threshold: dict[str, float]) -> None:
    # Larger: 8 bits -> float. Farther from the checkpoint: float -> 8 bits. Speed: not measured.
    order = (built.old, built.float) if "max_growth" in threshold else (built.float, built.old)
    found = built.compare(*order, **threshold)
    assert {(c.target, c.threshold) for c in found.crossed} == {("cpu-int8", *threshold)}
    # The same pair holds a threshold that allows it, but for speed that nobody measured.
    if "max_slowdown" not in threshold:
        assert built.compare(*order, **dict.fromkeys(threshold, 100.0)).crossed == ()


def _timed(speedup: float, low: float, high: float) -> Difference:
    timing = Timing(
        latency_p50_ms=1.0,
        latency_p50_ms_interval=Interval(low=1.0, high=1.0),
        throughput_samples_per_s=1.0,
    )
    shape = ShapeResult(
        axes=("batch",),
        shape=(1,),
        reference=timing,
        candidate=timing,
        speedup=speedup,
        speedup_interval=Interval(low=low, high=high),
        launch_speedups=(speedup,),
        noise_floor=0.0,
        verdict="slower",
    )
    speed = BenchmarkResult(
        reference="old",
        candidate="new",
        threads=1,
        launches=3,
        margin=0.05,
        load_time_ms=1,
        reference_load_time_ms=1,
        peak_rss_mib=1,
        reference_peak_rss_mib=1,
        size_bytes=1,
        reference_size_bytes=1,
        shapes=(shape,),
    )
    side = Side(name="a", version="1", directory="", verdict="passed", created_at="", size_bytes=1)
    quality = NumberChange(name="accuracy", old=0.9, new=0.88, change=-0.02)
    target = TargetChange(name="cpu", state="both", speed=speed, quality=(quality,))
    return Difference(old=side, new=side, targets=(target,), recipe=(), versions=(), source=())


def test_only_a_slowdown_that_is_certain_fails() -> None:
    limit = Thresholds(max_slowdown=1.1)
    (crossed,) = limit.crossed(_timed(0.7, 0.6, 0.8))
    assert "1.429 times as long (at least 1.250)" in crossed.sentence
    assert limit.crossed(_timed(0.7, 0.4, 1.2)) == ()


def test_lost_quality_fails() -> None:
    found = _timed(1.0, 0.9, 1.1)
    (crossed,) = Thresholds(max_quality_loss=0.01).crossed(found)
    assert crossed.sentence == "accuracy lost 0.02, at most 0.01 is allowed"
    assert Thresholds(max_quality_loss=0.03).crossed(found) == ()


def test_two_different_models_are_refused(built: Built) -> None:
    with pytest.raises(RecipeError, match="two different models: the task is"):
        built.compare(built.old, built.other)


def test_a_damaged_artifact_is_not_run(built: Built, tmp_path: Path) -> None:
    import shutil

    copy_of = tmp_path / built.new.name
    shutil.copytree(built.new, copy_of, symlinks=True)
    model = copy_of / "cpu-int8/model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="not what was published"):
        built.compare(built.old, copy_of)


def test_the_command_writes_markdown_json_and_the_exit_code(built: Built, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "diff",
        built.old,
        built.float,
        "--no-speed",
        "--store",
        built.folder / "store",
    ]
    done = run_convert(*words, "--markdown", "diff.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "diff.md").read_text()
    assert "New against old, on the same inputs, run now" in done.stdout
    done = run_convert(*words, "--max-growth", "1.01", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 1
    assert [crossed["threshold"] for crossed in document["crossed"]] == ["max_growth"]
    done = run_convert("diff", built.old, built.other, cwd=tmp_path)
    assert done.returncode == 2
    assert "two different models" in done.stderr
    done = run_convert("diff", built.old, "nothing", cwd=tmp_path)
    assert done.returncode == 2


@pytest.mark.slow
def test_speed_is_measured_in_the_same_launches(built: Built) -> None:
    found = compare_artifacts(
        built.float, built.old, built.store, DiffOptions(targets=("cpu-int8",))
    )
    (target,) = found.targets
    assert target.speed is not None
    assert target.speed.launches >= 3
    assert {shape.axes for shape in target.speed.shapes} == {("batch", "sequence")}
