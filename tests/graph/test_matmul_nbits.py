"""Weights packed for MatMulNBits: the same numbers in another layout, and products that use them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import StageError
from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.matmul_nbits import pack_products
from pipeline.graph.packed_weight import pack_weight, require_equal, unpack_weight
from pipeline.graph.weight_only import WeightOnlyRequest, quantize_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUTS, OUTPUTS = 64, 24


def _random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _model(
    node: onnx.NodeProto, weights: dict[str, Any], outputs: Sequence[str] = ("y",)
) -> ir.Model:
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in outputs
    ]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        infos,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.serde.deserialize_model(model)


def _quantize(model: ir.Model, bits: Any = 4, block_size: int | None = 32) -> None:
    request = WeightOnlyRequest(
        bits=bits,
        block_size=block_size,
        method="rtn",
        op_types=("MatMul", "Gemm"),
        exclude_nodes=(),
    )
    quantize_weights(model, request)


def _run(model: ir.Model, x: Any, *, is_optimized: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    if not is_optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


GEMM = {"w": _random(OUTPUTS, INPUTS), "b": _random(OUTPUTS, seed=1)}


@pytest.mark.parametrize(("bits", "block_size"), [(4, 16), (4, 32), (4, 64), (4, None), (8, None)])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_products_are_what_they_were(operator: str, bits: int, block_size: int | None) -> None:
    """Against the form with DequantizeLinear, which ONNX Runtime runs as it is written."""
    if operator == "MatMul":
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
        model = _model(node, {"w": _random(INPUTS, OUTPUTS)})
    else:
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product", transB=1)
        model = _model(node, GEMM)
    _quantize(model, bits, block_size)
    x = _random(5, INPUTS, seed=2)
    expected = _run(model, x, is_optimized=False)
    report = pack_products(model, accuracy_level=0)
    assert (report.outcome.fired, report.weights, report.compared) == (1, 1, INPUTS * OUTPUTS)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    assert [node.name for node in model.graph] == ["product"]
    assert np.abs(_run(model, x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_activations_are_rounded_to_8_bits_at_level_4() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = _model(node, {"w": _random(INPUTS, OUTPUTS)})
    _quantize(model)
    x = _random(5, INPUTS, seed=2)
    expected = _run(model, x, is_optimized=False)
    pack_products(model, accuracy_level=4)
    error = np.abs(_run(model, x) - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.02


@pytest.mark.parametrize("bits", [4, 8])
def test_every_integer_survives(bits: int) -> None:
    """All that a type holds, the least one too, which quantising never writes."""
    dtype = ml_dtypes.int4 if bits == 4 else np.int8
    low = -(2 ** (bits - 1))
    integers = np.resize(np.arange(low, -low), (3, 64)).astype(dtype)
    scales = np.array([0.5, 3.0, 1e-8], np.float32)
    packed = pack_weight(integers, scales, output_axis=0, block_size=None)
    expected = integers.astype(np.float32) * scales[:, None]
    assert np.array_equal(unpack_weight(packed), expected)
    assert require_equal(packed, integers, scales, output_axis=0, block_size=None) == 192


@pytest.mark.parametrize("damage", ["integer", "scale", "order"])
def test_a_packed_weight_that_differs_in_a_bit_is_an_error(damage: str) -> None:
    integers = np.random.default_rng(0).integers(-7, 8, (64, 8)).astype(ml_dtypes.int4)
    scales = np.abs(_random(2, 8)) + 0.1
    packed = pack_weight(integers, scales, output_axis=1, block_size=32)
    values, numbers = packed.values.copy(), packed.scales.copy()
    if damage == "integer":
        values[0, 0, 0] ^= 1
    elif damage == "scale":
        numbers[3, 1] = np.nextafter(numbers[3, 1], np.float32(9))
    else:
        values = (values << 4) | (values >> 4)
    broken = replace(packed, values=values, scales=numbers)
    with pytest.raises(StageError, match="not what it was"):
        require_equal(broken, integers, scales, output_axis=1, block_size=32)


def test_what_the_operator_does_not_take_is_left_with_a_reason() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product", transB=1, alpha=0.5)
    model = _model(node, GEMM)
    _quantize(model)
    before = [each.op_type for each in model.graph]
    report = pack_products(model, accuracy_level=0)
    assert [each.op_type for each in model.graph] == before
    assert [(each.node, each.reason) for each in report.outcome.refused] == [
        ("product", "Gemm multiplies with alpha or beta")
    ]
    for integers, scales, reason in (
        (np.zeros((24, 8), np.int8), np.ones(8, np.float32), "no whole number of blocks"),
        (np.zeros((32, 8), np.int8), np.ones(8, np.float16), "float16, not float32"),
        (np.zeros((32, 8), np.uint8), np.ones(8, np.float32), "uint8, not int4, uint4 or int8"),
    ):
        with pytest.raises(Refused, match=reason):
            pack_weight(integers, scales, output_axis=1, block_size=None)
