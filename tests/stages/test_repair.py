"""Sensitivity and repair on a real encoder with one layer that 8 bits destroy."""

from __future__ import annotations

import gc
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from pipeline.errors import QuantizationError, StageError
from pipeline.parity.trials import Notes, Trial, share_of_noise
from pipeline.run.process import WorkerProcess
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.check_repair import CHECK_REPAIR, CheckRepairConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.given_back import REPAIR_FILE, read_given_back
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_static import QUANTIZE_STATIC, QuantizeStaticConfig
from pipeline.stages.repair import REPAIR, RepairConfig, RepairOptions
from pipeline.stages.sensitivity import SENSITIVITY, SensitivityConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.stages.context import RecordingContext
from tests.stages.test_calibrate import random_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.stages.base import AnyStage, StageConfig

STATIC = QuantizeStaticConfig(placement="onnxruntime-cpu")
DYNAMIC = QuantizeDynamicConfig()
LAYERS = 12  # 2 blocks of 6 products
CHANNEL = 7


def damage_channel(
    checkpoint: Path, block: str, channel: int = CHANNEL, *, by: float = 1e3
) -> None:
    """Give the first product of a feed-forward block one huge input channel that carries next to nothing.

    The normalisation before writes a small number there, which the weight makes as large as it was:
    the float model computes the same. But every column of the weight gets its scale from that row,
    and all other rows are rounded away.
    """
    from safetensors.numpy import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    for part in ("weight", "bias"):
        tensors[f"{block}.attention.output.LayerNorm.{part}"][channel] /= by
    tensors[f"{block}.intermediate.dense.weight"][:, channel] *= by
    save_file(tensors, path, metadata={"format": "pt"})


class Bench:
    """Runs stages in a directory; what they wrote is found under a name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []

    def run(
        self, stage: AnyStage, config: StageConfig, name: str, **inputs: str | Path
    ) -> dict[str, Any]:
        output, scratch, kept = (self.root / f"{name}{end}" for end in ("", ".scratch", ".kept"))
        for folder in (output, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        kept.mkdir(exist_ok=True)
        context = RecordingContext(scratch, threads=2, resumable=kept)
        ports = {port: self.root / place for port, place in inputs.items()}
        facts = dict(stage.run(config, ports, output, context))
        self.lines = context.lines
        return facts

    def sensitivity(self, name: str = "sensitivity", **changes: Any) -> dict[str, Any]:
        config = SensitivityConfig(
            **{"quantizer": STATIC, "optimizations": "all", "samples": 6, **changes}
        )
        return self.run(
            SENSITIVITY, config, name, model="fuse", ranges="ranges", samples="samples"
        )

    def repair(self, name: str = "repair", **changes: Any) -> dict[str, Any]:
        values = {
            "quantizer": STATIC,
            "optimizations": "all",
            "samples": 6,
            "task": "feature-extraction",
        }
        return self.run(
            REPAIR,
            RepairConfig(**{**values, **changes}),
            name,
            model="fuse",
            ranges="ranges",
            samples="samples",
            sensitivity="sensitivity",
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Iterator[Bench]:
    """Everything up to the ranges, and the sensitivity, of an encoder with one bad layer."""
    root = tmp_path_factory.mktemp("repair")
    checkpoint = root / "checkpoint"
    shutil.copytree(sentence_encoder, checkpoint)
    damage_channel(checkpoint, "encoder.layer.1")
    bench = Bench(root)
    export = ExportConfig(task="feature-extraction", component="model")
    bench.run(EXPORT, export, "export", checkpoint="checkpoint")
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE, FuseConfig(), "fuse", model="simplify")
    random_samples(root / "samples", 12, 60)
    bench.run(CALIBRATE, CalibrateConfig(), "ranges", model="simplify", samples="samples")
    # Torch has left millions of objects, and a trial looks for garbage more than once.
    gc.collect()
    gc.freeze()
    bench.sensitivity()
    yield bench
    gc.unfreeze()


@pytest.fixture(scope="module")
def bad_layer(bench: Bench) -> str:
    """Name of the product whose weight has a row far above all others."""
    graph = onnx.load(bench.root / "fuse" / "model.onnx").graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    spread = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            rows = np.abs(weights[node.input[1]]).max(axis=1)
            spread[node.name] = float(rows.max() / np.median(rows))
    worst = max(spread, key=spread.__getitem__)
    assert spread[worst] > 100
    return worst


def _sensitivity(bench: Bench) -> dict[str, Any]:
    text = (bench.root / "sensitivity" / "sensitivity.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_the_bad_layer_stands_first_with_most_of_the_noise(bench: Bench, bad_layer: str) -> None:
    facts = _sensitivity(bench)
    assert facts["is_complete"]
    assert facts["measured_alone"] == facts["measured_without"] == facts["layers_total"] == LAYERS
    first, *others = facts["layers"]
    assert first["layer"] == bad_layer
    assert first["share"] > 0.6
    assert all(row["share"] < 0.2 for row in others)
    # Alone it is about as bad as all together, and without it little is left.
    whole = facts["quantized"]["noise"]
    assert first["noise_alone"] > 0.7 * whole
    assert first["noise_without"] < 0.6 * whole
    assert all(row["noise_without"] > 0.7 * whole for row in others)
    assert all(row["bytes_given_back"] > 0 for row in facts["layers"])
    assert sum(row["products_share"] for row in facts["layers"]) == pytest.approx(1.0)


def test_dynamic_quantisation_finds_the_same_layer(bench: Bench, bad_layer: str) -> None:
    facts = bench.sensitivity("dynamic", quantizer=DYNAMIC)
    assert facts["layers"][0]["layer"] == bad_layer
    assert len(facts["layers"]) == LAYERS


def test_numbers_are_the_same_whatever_the_threads(bench: Bench) -> None:
    config = SensitivityConfig(quantizer=STATIC, optimizations="all", samples=6)
    scratch, output = bench.root / "one-thread.scratch", bench.root / "one-thread"
    scratch.mkdir()
    output.mkdir()
    ports = {"model": "fuse", "ranges": "ranges", "samples": "samples"}
    facts = SENSITIVITY.run(
        config,
        {port: bench.root / place for port, place in ports.items()},
        output,
        RecordingContext(scratch, threads=1),
    )
    assert dict(facts) == _sensitivity(bench)


def test_the_bad_layer_alone_is_given_back(bench: Bench, bad_layer: str) -> None:
    whole = _sensitivity(bench)["quantized"]["noise"]
    facts = bench.repair(max_noise=whole * 0.6)
    assert [entry["layer"] for entry in facts["given_back"]] == [bad_layer]
    assert facts["is_reached"]
    assert facts["is_complete"]
    (limit,) = facts["limits"]
    assert limit["before"] > limit["allowed"] >= limit["after"]
    assert facts["price"]["size_bytes"] == (
        facts["after"]["size_bytes"] - facts["before"]["size_bytes"]
    )
    assert facts["price"]["size_bytes"] > 0
    assert 0 < facts["price"]["products_share"] < 0.3


def test_the_quantising_stages_keep_what_was_given_back(bench: Bench, bad_layer: str) -> None:
    whole = _sensitivity(bench)["quantized"]["noise"]
    bench.repair("found", max_noise=whole * 0.6)
    static = bench.run(
        QUANTIZE_STATIC, STATIC, "static", model="fuse", ranges="ranges", repair="found"
    )
    dynamic = bench.run(QUANTIZE_DYNAMIC, DYNAMIC, "shipped", model="fuse", repair="found")
    for name, facts in (("static", static), ("shipped", dynamic)):
        assert facts["given_back"] == [bad_layer]
        assert bad_layer not in facts["quantized"]
        assert len(facts["quantized"]) == LAYERS - 1
        reasons = {entry["node"]: entry["reason"] for entry in facts["kept_float"]}
        assert "repair" in reasons[bad_layer]
        graph = onnx.load(bench.root / name / "model.onnx").graph
        kept = [node for node in graph.node if node.name == bad_layer]
        assert [node.op_type for node in kept] == ["MatMul"]
    # The graph that is shipped is the one that was tried, to the bit.
    tried = json.loads((bench.root / "found" / REPAIR_FILE).read_text())["after"]["noise"]
    again = bench.run(
        SENSITIVITY,
        SensitivityConfig(
            quantizer=STATIC.model_copy(update={"exclude_nodes": (bad_layer,)}),
            optimizations="all",
            samples=6,
        ),
        "excluded",
        model="fuse",
        ranges="ranges",
        samples="samples",
    )
    assert again["quantized"]["noise"] == tried
    assert again["layers_total"] == LAYERS - 1


def test_a_limit_that_holds_already_changes_nothing(bench: Bench) -> None:
    facts = bench.repair(max_noise=10.0)
    assert facts["given_back"] == []
    assert facts["is_reached"]
    assert facts["stopped"] == "the limit held without a repair"
    assert facts["price"]["size_bytes"] == 0
    repaired = bench.run(
        QUANTIZE_STATIC, STATIC, "same", model="fuse", ranges="ranges", repair="repair"
    )
    plain = bench.run(QUANTIZE_STATIC, STATIC, "plain", model="fuse", ranges="ranges")
    assert repaired["quantized"] == plain["quantized"]
    files = [(bench.root / name / "model.onnx").read_bytes() for name in ("same", "plain")]
    assert files[0] == files[1]


def test_no_layer_is_given_back_needlessly(bench: Bench) -> None:
    """A tight limit on the angle: without any one of the chosen layers it would not hold."""
    limit = _sensitivity(bench)["layers"][0]["cosine_gap_without"] / 2
    facts = bench.repair(max_cosine_gap=limit)
    assert facts["is_reached"]
    chosen = [entry["layer"] for entry in facts["given_back"]]
    assert 1 < len(chosen) < LAYERS
    for layer in chosen:
        rest = tuple(name for name in chosen if name != layer)
        fewer = bench.sensitivity(
            "fewer",
            quantizer=STATIC.model_copy(update={"exclude_nodes": rest}),
            time_limit_s=1e-6,
        )
        assert fewer["quantized"]["cosine_gap"] > limit


def test_an_impossible_limit_ends_with_a_report_and_fails_the_gate(bench: Bench) -> None:
    facts = bench.repair("impossible", max_noise=1e-9)
    assert not facts["is_reached"]
    assert facts["is_complete"]
    assert "does not hold with all layers but one in float either" in facts["stopped"]
    assert any("was not reached" in line for line in bench.lines)
    (result,) = _judge(bench, "impossible")
    assert result.verdict == "failed"
    assert not result.is_allowed
    assert result.node == "quantize_static"
    assert f"of {LAYERS} layers in float" in result.reason
    assert result.metric == "quantize_static.noise"


def test_an_impossible_limit_ends_at_the_time_limit(bench: Bench) -> None:
    facts = bench.repair("hurried", max_noise=1e-9, time_limit_s=1e-6)
    assert not facts["is_reached"]
    assert not facts["is_complete"]
    assert facts["trials"] == 1  # the one that says where it stands
    assert "the time limit of 1e-06 s" in facts["stopped"]
    (result,) = _judge(bench, "hurried")
    assert "time limit" in result.reason


def test_no_more_layers_than_allowed(bench: Bench) -> None:
    facts = bench.repair("few", max_noise=1e-9, max_layers=2)
    assert len(facts["given_back"]) <= 2
    assert "max_layers" in facts["stopped"]
    assert facts["after"]["noise"] < facts["before"]["noise"]  # the best that was seen


def test_a_gate_holds_when_the_limit_does(bench: Bench) -> None:
    bench.repair("easy", max_noise=10.0, max_cosine_gap=1.0)
    results = _judge(bench, "easy")
    assert [result.verdict for result in results] == ["passed", "passed"]


def _judge(bench: Bench, name: str) -> tuple[Any, ...]:
    from pipeline.checks.base import Measured
    from pipeline.checks.repair import REPAIR_CHECK, RepairGate

    facts = bench.run(CHECK_REPAIR, CheckRepairConfig(), f"{name}-checked", repair=name)
    measured = Measured(
        target="cpu-int8",
        component="model",
        stage="quantize_static",
        node="quantize_static",
        arithmetic="quantized",
        is_proxy=False,
        facts=facts,
        floors={},
    )
    return REPAIR_CHECK.judge(measured, RepairGate())


def test_the_time_limit_says_what_is_missing_and_more_time_goes_on_from_there(
    bench: Bench,
) -> None:
    facts = bench.sensitivity("cut", time_limit_s=1e-6)
    assert not facts["is_complete"]
    assert facts["measured_alone"] == facts["measured_without"] == 0
    assert len(facts["layers"]) == LAYERS  # each is named, none has a number
    assert {row["is_measured"] for row in facts["layers"]} == {False}
    assert {row["share"] for row in facts["layers"]} == {None}
    assert "0 of 12 layers were tried alone" in bench.lines[0]
    noted = {path: path.stat().st_mtime_ns for path in (bench.root / "cut.kept").iterdir()}
    assert len(noted) == 2
    whole = bench.sensitivity("cut")
    assert whole == _sensitivity(bench)
    assert {path: path.stat().st_mtime_ns for path in noted} == noted


def test_an_unfinished_sensitivity_still_ranks_every_layer_for_a_repair(
    bench: Bench, bad_layer: str
) -> None:
    """Weights and ranges alone tell which layer is coarsest."""
    facts = bench.sensitivity("hurry", time_limit_s=1e-6)
    assert facts["layers"][0]["layer"] == bad_layer


def test_a_killed_sensitivity_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    config = SensitivityConfig(quantizer=STATIC, optimizations="all", samples=6)
    ports = {"model": "fuse", "ranges": "ranges", "samples": "samples"}
    kept = tmp_path / "kept"
    kept.mkdir()

    def attempt(name: str, kill_at: int | None) -> Mapping[str, Any] | None:
        output, scratch = tmp_path / name, tmp_path / f"{name}.scratch"
        output.mkdir()
        scratch.mkdir()
        worker = WorkerProcess((), 1)

        def on_progress(done: int, total: int, unit: str) -> None:
            assert (total, unit) == (2 * LAYERS, "trials")
            if kill_at is not None and done >= kill_at:
                worker.kill()

        job = {
            "stage": "sensitivity",
            "config": config.model_dump_json(),
            "inputs": {port: str(bench.root / place) for port, place in ports.items()},
            "output": str(output),
            "scratch": str(scratch),
            "threads": 1,
            "resumable": str(kept),
        }
        return worker.run(job, time_s=300, memory_limit_mib=None, on_progress=on_progress).facts

    assert attempt("killed", kill_at=4) is None
    noted = {path: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert 5 <= len(noted) < 2 * LAYERS + 2
    assert attempt("again", kill_at=None) == _sensitivity(bench)
    assert {path: path.stat().st_mtime_ns for path in noted} == noted


def test_a_damaged_note_is_measured_again(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    trial = Trial(noise=0.5, cosine_gap=None, drop=None, size_bytes=3)
    notes.write("a", trial)
    assert notes.find("a") == trial
    for content in (b"", b'{"noise": 0.5', b'{"noise": "much"}', b"\xff"):
        (tmp_path / "a.json").write_bytes(content)
        assert notes.find("a") is None
    shutil.rmtree(tmp_path)
    notes.write("a", trial)  # swept meanwhile: only time is lost
    assert notes.find("a") is None


def test_a_drop_needs_labels(bench: Bench) -> None:
    with pytest.raises(QuantizationError, match="no calibration sample has a label") as caught:
        bench.repair(max_drop=0.01)
    assert "data.calibration.label" in caught.value.hint


def test_a_repair_needs_a_limit() -> None:
    with pytest.raises(ValidationError, match="max_drop, max_noise, max_cosine_gap"):
        RepairOptions(samples=3)


@pytest.mark.parametrize("content", ["", "{}", '{"given_back": [1]}', "[]"])
def test_what_is_no_repair_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / REPAIR_FILE).write_text(content)
    with pytest.raises(StageError, match="not the result of a repair"):
        read_given_back({"repair": tmp_path})


def test_a_layer_that_is_not_there_cannot_be_given_back(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / REPAIR_FILE).write_text('{"given_back": [{"layer": "nobody"}]}')
    for stage, config in ((QUANTIZE_STATIC, STATIC), (QUANTIZE_DYNAMIC, DYNAMIC)):
        with pytest.raises(QuantizationError, match="no layer with a weight has this name"):
            bench.run(stage, config, "none", model="fuse", ranges="ranges", repair=tmp_path)


def test_a_share_is_of_squares() -> None:
    # Two independent layers of 3 and 4 make 5; each has its part of the square.
    assert share_of_noise(5.0, 3.0, 4.0, 0.0) == pytest.approx(9 / 25)
    assert share_of_noise(5.0, 4.0, 3.0, 0.0) == pytest.approx(16 / 25)
    # Tables of embeddings make noise that is no layer's.
    assert share_of_noise(5.0, 3.0, 4.0, 3.0) == pytest.approx(9 / 16)
    # Without the second figure, the first is all there is.
    assert share_of_noise(5.0, 3.0, None, 0.0) == pytest.approx(9 / 25)
    # Where something is not finite, nothing can be said.
    assert share_of_noise(None, 3.0, 4.0, 0.0) is None
    assert share_of_noise(5.0, None, 4.0, 0.0) is None
