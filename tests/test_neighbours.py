"""`benchmarks/neighbours.py`: what neighbours say is told as they say it, and counted fairly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.neighbours import Row, ask_checker, ask_qdq, ask_runtime, totals

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def _write(folder: Path, nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray]) -> Path:
    """A graph from `x` [n, 3] to `y`."""
    folder.mkdir()
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    return folder


def _float(folder: Path) -> Path:
    return _write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})


def _quantized(folder: Path, scale: float) -> Path:
    stored = {
        "w_quantized": np.round(WEIGHT * 127).astype(np.int8),
        "scale": np.asarray(scale, np.float32),
        "zero": np.asarray(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w_quantized", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return _write(folder, nodes, stored)


def test_a_right_graph_is_met_with_silence(tmp_path: Path) -> None:
    graph = _float(tmp_path / "right")
    assert ask_checker(graph) == "silent"
    assert ask_runtime(graph) == ("silent", "silent")


def test_a_graph_of_wrong_shapes_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = _write(tmp_path / "wrong", nodes, {"w": np.zeros((5, 4), np.float32)})
    assert ask_checker(graph).startswith("raises")
    assert ask_runtime(graph)[0].startswith("raises")


def test_a_graph_for_one_sample_loads_and_does_not_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["one"]),
        helper.make_node("MatMul", ["one", "w"], ["y"]),
    ]
    stored = {"w": WEIGHT, "shape": np.asarray([1, 3], np.int64)}
    loads, runs = ask_runtime(_write(tmp_path / "one", nodes, stored))
    assert loads == "silent"
    assert runs.startswith("raises")


def test_the_loss_of_a_quantised_weight_is_a_number_and_no_verdict(tmp_path: Path) -> None:
    baseline = _float(tmp_path / "float") / "model.onnx"
    right = ask_qdq(baseline, _quantized(tmp_path / "right", 1 / 127))
    wrong = ask_qdq(baseline, _quantized(tmp_path / "wrong", 2 / 127))
    assert right.endswith("dB of 1 weights")
    # Twice the weight is as far from it as it is large.
    assert wrong.startswith(("-0.0 dB", "0.0 dB"))
    assert float(right.split()[0]) > 40


@pytest.mark.parametrize(
    ("damaged", "right", "told", "stops"),
    [
        ("warns, exit 0, max diff 3", "silent, exit 0", 1, 0),
        ("raises, exit 1, no", "silent, exit 0", 1, 1),
        ("warns, exit 0, max diff 3", "warns, exit 0, max diff 0.2", 0, 0),
        ("silent, exit 0", "silent, exit 0", 0, 0),
    ],
)
def test_only_what_is_not_said_of_the_right_graph_counts(
    tmp_path: Path, damaged: str, right: str, told: int, stops: int
) -> None:
    row = Row(fault="f", model="m", target="t", stage="export", graph=tmp_path, good=tmp_path)
    row.neighbours["optimum"], row.of_good["optimum"] = damaged, right
    counts = totals([row])
    assert counts["optimum"] == {"asked": 1, "told": told, "stops": stops}
    assert counts["checker"]["asked"] == 0
    assert counts["ours"]["told"] == 0
