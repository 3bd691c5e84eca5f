"""Samples that cannot be run end the calibration; it never waits for what will not come."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.calibration.observe import observe_samples
from pipeline.data.sample_set import (
    InputSpec,
    SampleEntry,
    SampleIndex,
    load_samples,
    save_samples,
)
from pipeline.errors import PipelineError, QuantizationError
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.data.sample_set import SampleSet

SAMPLES = 12
THREADS = 2
PATIENCE_S = 60


def _samples(folder: Path) -> SampleSet:
    entries = tuple(SampleEntry(index=i, text=f"{i}", extents={}) for i in range(SAMPLES))
    index = SampleIndex(
        source="made",
        use="calibration",
        seed=0,
        max_length=None,
        inputs={"pixel_values": InputSpec(dtype="float32", axes=(None,))},
        samples=entries,
    )
    save_samples(index, [{"pixel_values": np.ones(5, np.float32)}] * SAMPLES, folder)
    return load_samples(folder)


def _model_of_seven(folder: Path) -> Path:
    """It reshapes to seven numbers, and samples have five."""
    shape = numpy_helper.from_array(np.asarray([1, 7], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["pixel_values", "shape"], ["seen"])],
        "seven",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", "size"])],
        [helper.make_tensor_value_info("seen", TensorProto.FLOAT, None)],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_when_every_sample_fails_it_ends_with_the_first(tmp_path: Path) -> None:
    samples, ended = _samples(tmp_path), []

    def calibrate() -> None:
        model = _model_of_seven(tmp_path)
        with OnnxRuntimeRunner(model, optimizations="disabled", threads=1) as runner:
            try:
                observe_samples(
                    runner,
                    samples,
                    ["seen"],
                    has_histogram=False,
                    threads=THREADS,
                    progress=lambda *_: None,
                )
            except PipelineError as error:
                ended.append(error)

    # A thread that can be left behind, so that a wait without end fails this test alone.
    worker = threading.Thread(target=calibrate, daemon=True)
    worker.start()
    worker.join(PATIENCE_S)
    assert ended, "it waits for ever"
    (error,) = ended
    assert isinstance(error, QuantizationError)
    assert "calibration sample 0" in error.message


@pytest.mark.parametrize("threads", [1, 3])
def test_samples_are_counted_whatever_the_threads(tmp_path: Path, threads: int) -> None:
    samples = _samples(tmp_path)
    path = _model_of_seven(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.asarray([1, 5], np.int64), "shape")
    )
    path.write_bytes(model.SerializeToString())
    with OnnxRuntimeRunner(path, optimizations="disabled", threads=1) as runner:
        found = observe_samples(
            runner,
            samples,
            ["seen"],
            has_histogram=False,
            threads=threads,
            progress=lambda *_: None,
        )
    assert found["seen"].count == 5 * SAMPLES
