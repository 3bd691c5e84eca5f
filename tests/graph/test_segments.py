from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.inner_values import captured_names, read_inner_values
from pipeline.graph.segments import FED, write_segment

if TYPE_CHECKING:
    from pathlib import Path

FLOAT = TensorProto.FLOAT


def model() -> onnx.ModelProto:
    """Computes x -> a = 2 x -> b = a + 3 -> c = if flag: b * 5, else: b."""
    weights = {
        name: numpy_helper.from_array(np.array([number], dtype=np.float32), name)
        for name, number in {"two": 2.0, "net.first.bias": 3.0, "five": 5.0}.items()
    }
    scaled = helper.make_tensor_value_info("scaled", FLOAT, ["n"])
    same = helper.make_tensor_value_info("same", FLOAT, ["n"])
    then = helper.make_graph(
        [helper.make_node("Mul", ["b", "five"], ["scaled"])], "t", [], [scaled]
    )
    other = helper.make_graph([helper.make_node("Identity", ["b"], ["same"])], "e", [], [same])
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"], name="double"),
        helper.make_node("Add", ["a", "net.first.bias"], ["b"], name="add"),
        helper.make_node(
            "If", ["flag"], ["c"], name="choose", then_branch=then, else_branch=other
        ),
        helper.make_node("Neg", ["c"], ["d"], name="/net/last/Neg"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["n"]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", FLOAT, ["n"])],
        list(weights.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_segment_computes_from_the_values_that_it_is_given(tmp_path: Path) -> None:
    given = {"a": FLOAT, "c": FLOAT}
    path, taken = write_segment(model(), ["a", "b", "d"], given, tmp_path)
    assert set(taken) == {"a", "c"}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"x", f"{FED}a", f"{FED}c"}
    found = session.run(
        ["a", "b", "d"],
        {
            "x": np.array([1.0], dtype=np.float32),
            f"{FED}a": np.array([10.0], dtype=np.float32),
            f"{FED}c": np.array([100.0], dtype=np.float32),
        },
    )
    # `a` is computed, though what reads it is given another.
    assert [float(each[0]) for each in found] == [2.0, 13.0, -100.0]


def test_only_what_is_needed_is_in_it(tmp_path: Path) -> None:
    path, _ = write_segment(model(), ["b"], {"a": FLOAT}, tmp_path)
    graph = onnx.load_model(path).graph
    assert [node.op_type for node in graph.node] == ["Add"]
    assert [tensor.name for tensor in graph.initializer] == ["net.first.bias"]


def test_what_subgraphs_read_is_computed_and_never_given(tmp_path: Path) -> None:
    names = captured_names(model().graph)
    assert {"b", "five"} <= names
    assert "a" not in names
    path, taken = write_segment(model(), ["c"], {"a": FLOAT}, tmp_path)
    assert taken == ("a",)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {f"{FED}a": np.array([10.0], dtype=np.float32), "flag": np.array(1, dtype=bool)}
    assert float(session.run(None, feeds)[0][0]) == 65.0


def test_layers_are_told_by_the_export_or_by_names() -> None:
    values = {value.name: value for value in read_inner_values(model().graph, {"c": "net.middle"})}
    assert {name: value.layer for name, value in values.items()} == {
        "a": "net.first",  # what adds its bias next
        "b": "net.first",
        "c": "net.middle",
        "d": "net.last",
    }
    assert values["a"].node == "double"
    assert values["c"].operator == "If"
