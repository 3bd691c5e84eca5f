from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ArtifactError
from pipeline.graph.engine_checks import GraphProblem, GraphTensor, read_engine_graph
from tests.engines.graphs import HIDDEN, encoder, model, product, product_with_dead_input

if TYPE_CHECKING:
    from pathlib import Path


def _problems(graph: onnx.ModelProto, directory: Path) -> dict[str, GraphProblem]:
    path = directory / "model.onnx"
    onnx.save(graph, path)
    return {problem.node: problem for problem in read_engine_graph(path).problems}


def _quantized(
    zero_point: onnx.TensorProto | None, dtype: int = TensorProto.INT8
) -> onnx.ModelProto:
    """Weights behind a DequantizeLinear."""
    rows = helper.make_tensor("q", dtype, [HIDDEN, HIDDEN], [1] * HIDDEN**2)
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    tensors = [rows, scale, *([zero_point] if zero_point else [])]
    inputs = ["q", "scale", *([zero_point.name] if zero_point else [])]
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["w"], name="dequantize"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    value = (TensorProto.FLOAT, ["batch", HIDDEN])
    return model(nodes, tensors, inputs={"x": value}, outputs={"y": value})


def test_a_good_graph_has_no_problems_and_gives_inputs_and_attentions(tmp_path: Path) -> None:
    onnx.save(encoder(2), tmp_path / "model.onnx")
    graph = read_engine_graph(tmp_path / "model.onnx")
    assert graph.problems == ()
    assert graph.inputs[0] == GraphTensor("input_ids", "int64", ("batch", "sequence"))
    assert [block.nodes for block in graph.attentions] == [
        ("scores_0", "softmax_0", "context_0"),
        ("scores_1", "softmax_1", "context_1"),
    ]


def test_an_unnamed_dynamic_axis_and_a_static_one_are_told_apart(tmp_path: Path) -> None:
    onnx.save(product(dims=(None, HIDDEN)), tmp_path / "model.onnx")
    graph = read_engine_graph(tmp_path / "model.onnx")
    assert graph.inputs == (GraphTensor("x", "float16", (None, HIDDEN)),)
    assert graph.outputs == (GraphTensor("y", "float16", (None, HIDDEN)),)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("16", "axis 0 has the number `16` for a name"),
        ("s36 + 1", "axis 0 is `s36 + 1`, which is computed"),
        ("2*batch", "which is computed"),
    ],
)
def test_an_axis_that_is_not_what_its_name_says_is_named(
    tmp_path: Path, name: str, what: str
) -> None:
    problem = _problems(product(dims=(name, HIDDEN)), tmp_path)["input x"]
    assert what in problem.what
    assert problem.hint


@pytest.mark.parametrize("name", ["batch", "batch-size", "batch size", "_s1"])
def test_names_that_are_only_names_are_fine(tmp_path: Path, name: str) -> None:
    assert not _problems(product(dims=(name, HIDDEN)), tmp_path)


def test_an_axis_without_elements_is_named(tmp_path: Path) -> None:
    problem = _problems(product(dims=(0, HIDDEN)), tmp_path)["input x"]
    assert "axis 0 has the size 0" in problem.what


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    graph = product_with_dead_input()
    graph.graph.node[0].op_type = "MatMulInteger"
    graph.graph.node.add(op_type="Unique", name="unique", input=["m"], output=["u"])
    graph.graph.node.add(
        op_type="FusedMatMul", domain="com.microsoft", input=["m", "w"], output=["f"]
    )
    found = _problems(graph, tmp_path)
    assert set(found) == {"input dead", "product", "unique", "node_of_f"}
    assert "no output depends on its values" in found["input dead"].what
    assert found["product"].hint.startswith("quantise statically")
    assert "does not support" in found["unique"].what
    assert found["node_of_f"].operator == "com.microsoft::FusedMatMul"


@pytest.mark.parametrize(
    ("operator", "what"),
    [
        ("DynamicQuantizeLinear", "dynamic quantisation"),
        ("ConvInteger", "dynamic quantisation"),
        ("QLinearMatMul", "operators on quantised tensors"),
        ("NonZero", "does not support"),
        ("BitShift", "does not support"),
    ],
)
def test_an_operator_that_tensorrt_lacks_is_named(
    tmp_path: Path, operator: str, what: str
) -> None:
    graph = product()
    graph.graph.node[1].op_type = operator
    assert what in _problems(graph, tmp_path)["relu"].what


def test_a_foreign_domain_is_refused_even_for_a_known_operator(tmp_path: Path) -> None:
    graph = product()
    graph.graph.node[1].domain = "my.domain"
    problem = _problems(graph, tmp_path)["relu"]
    assert problem.operator == "my.domain::Relu"
    assert "ignores the domain my.domain" in problem.what


def test_problems_in_the_branches_of_an_if_are_found(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Unique", ["m"], ["u"], name="deep")],
        "branch",
        [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT16, None)],
    )
    graph = product()
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    graph.graph.node.append(
        helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch)
    )
    assert "deep" in _problems(graph, tmp_path)


def test_symmetric_int8_weights_are_fine(tmp_path: Path) -> None:
    assert not _problems(_quantized(None), tmp_path)
    assert not _problems(_quantized(helper.make_tensor("z", TensorProto.INT8, [], [0])), tmp_path)


@pytest.mark.parametrize(
    ("zero_point", "dtype", "what"),
    [
        (helper.make_tensor("z", TensorProto.INT8, [], [3]), TensorProto.INT8, "is not 0"),
        (helper.make_tensor("z", TensorProto.UINT8, [], [0]), TensorProto.UINT8, "not to uint8"),
        (None, TensorProto.UINT8, "not to uint8"),
        (None, TensorProto.UINT4, "not to uint4"),
        (None, TensorProto.FLOAT8E5M2, "not to float8e5m2"),
        (helper.make_tensor("x", TensorProto.INT8, [], [0]), TensorProto.INT8, "not a constant"),
        (None, TensorProto.INT32, "int32 bias"),
    ],
)
def test_quantisation_that_tensorrt_refuses_is_named(
    tmp_path: Path, zero_point: onnx.TensorProto | None, dtype: int, what: str
) -> None:
    graph = _quantized(zero_point, dtype)
    if zero_point is not None and zero_point.name == "x":  # taken from the input: no constant
        del graph.graph.initializer[-1]
    assert what in _problems(graph, tmp_path)["dequantize"].what


def test_a_zero_point_in_a_constant_node_is_seen(tmp_path: Path) -> None:
    graph = _quantized(helper.make_tensor("z", TensorProto.INT8, [], [3]))
    value = graph.graph.initializer.pop()
    graph.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=value))
    assert "is not 0" in _problems(graph, tmp_path)["dequantize"].what


def test_a_string_input_is_refused(tmp_path: Path) -> None:
    graph = product()
    graph.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"]))
    onnx.save(graph, tmp_path / "model.onnx")
    problems = read_engine_graph(tmp_path / "model.onnx").problems
    assert any("strings are unknown" in problem.what for problem in problems)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(ArtifactError):
        read_engine_graph(tmp_path / "model.onnx")


def test_the_list_of_unsupported_operators_is_the_parsers_own() -> None:
    import subprocess
    import sys

    code = """
import onnx, tensorrt_rtx as trt
from pipeline.graph import engine_checks as checks
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
parser = trt.OnnxParser(trt.Builder(logger).create_network(1), logger)
names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
lacking = {name for name in names if not parser.supports_operator(name)}
ours = checks.UNSUPPORTED_OPERATORS | checks.DYNAMIC_OPERATORS | checks.INTEGER_OPERATORS
print(sorted(lacking ^ (ours - {"NonZero"})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
