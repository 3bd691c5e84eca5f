"""Bytes by operator and element type: told from the graph, and their sum is that of all tensors."""

from __future__ import annotations

import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto

from pipeline.graph.inspect import count_weight_bytes, element_bits
from pipeline.graph.weights import REST, weights_by_operator
from tests.graph.models import embedding_model


def tensor(name: str, dtype: int, *dims: int) -> onnx.TensorProto:
    size = 1
    for dim in dims:
        size *= dim
    width = oh.tensor_dtype_to_np_dtype(dtype).itemsize
    return oh.make_tensor(name, dtype, dims, bytes(size * width), raw=True)


def model() -> onnx.ModelProto:
    """A table that two nodes share, a product in half precision through a cast, a bias."""
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["a"]),
        oh.make_node("Transpose", ["table"], ["table_t"]),
        oh.make_node("MatMul", ["a", "table_t"], ["b"]),
        oh.make_node("Cast", ["half"], ["half_f"], to=TensorProto.FLOAT),
        oh.make_node("MatMul", ["b", "half_f"], ["c"]),
        oh.make_node("Add", ["c", "bias"], ["y"]),
    ]
    initializers = [
        tensor("table", TensorProto.FLOAT, 10, 4),
        tensor("half", TensorProto.FLOAT16, 10, 6),
        tensor("bias", TensorProto.FLOAT, 6),
    ]
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        initializers,
    )
    return oh.make_model(graph)


def test_weights_go_to_the_operator_that_reads_them_and_shared_ones_count_once() -> None:
    assert weights_by_operator(model()) == [
        {"part": "Gather", "dtype": "float", "size_bytes": 160},
        {"part": "MatMul", "dtype": "float16", "size_bytes": 120},
        {"part": REST, "dtype": "float", "size_bytes": 24},
    ]


@pytest.mark.parametrize("found", [model(), embedding_model()], ids=["shared", "embedding"])
def test_the_sum_is_that_of_all_tensors(found: onnx.ModelProto) -> None:
    sums: dict[str, int] = {}
    for part in weights_by_operator(found):
        sums[str(part["dtype"])] = sums.get(str(part["dtype"]), 0) + int(part["size_bytes"])
    assert sums == count_weight_bytes(found)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float", 32), ("int4", 4), ("bool", 8), ("string", 0)]
)
def test_an_element_has_its_bits(dtype: str, bits: int) -> None:
    assert element_bits(dtype) == bits
