"""Where quantise/dequantise pairs go, by placement, and that the numbers stay close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from pipeline.calibration.methods import Range
from pipeline.errors import QuantizationError
from pipeline.graph.engine_checks import read_engine_graph
from pipeline.graph.qdq import QdqOptions, activation_scale, quantize_static
from pipeline.graph.qdq_placements import PLACEMENTS, PlacementName
from tests.graph.models import parse, random

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.graph.quantization_result import QuantizationResult

ORT: PlacementName = "onnxruntime-cpu"
TRT: PlacementName = "tensorrt"

RESIDUAL = """
block (float[batch, 8] x) => (float[batch, 8] y)
{
    hidden = MatMul(x, first)
    biased = Add(hidden, bias)
    active = Relu(biased)
    back = MatMul(active, second)
    y = Add(back, x)
}
"""
RESIDUAL_WEIGHTS = {
    "first": random(8, 16, seed=1),
    "second": random(16, 8, seed=2),
    "bias": random(16, seed=3),
}

GEMM = """
layer (float[batch, 8] x) => (float[batch, 16] y)
{
    y = Gemm<transB = 1>(x, weight, bias)
}
"""
GEMM_WEIGHTS = {"weight": random(16, 8, seed=4), "bias": random(16, seed=5)}

CONV = """
block (float[batch, 3, 6, 6] x) => (float[batch, 5, 4, 4] y)
{
    inner = Conv<kernel_shape = [2, 2]>(x, first, bias)
    active = Relu(inner)
    y = Conv<kernel_shape = [2, 2]>(active, second)
}
"""
CONV_WEIGHTS = {
    "first": random(4, 3, 2, 2, seed=6),
    "bias": random(4, seed=7),
    "second": random(5, 4, 2, 2, seed=8),
}


def _options(placement: PlacementName, **changes: Any) -> QdqOptions:
    is_ort = placement == ORT
    fields: dict[str, Any] = {
        "per_channel": True,
        "activation_dtype": "uint8" if is_ort else "int8",
        "weight_dtype": "int8",
        "reduce_range": False,
        "quantize_embeddings": is_ort,
        "op_types": ("MatMul", "Gemm", "Conv"),
        "exclude_nodes": (),
    }
    return QdqOptions(**(fields | changes))


def _observe(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, Range]:
    """Ranges of all values of a model, from one run."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    known = {value.name for value in model.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    session = ort.InferenceSession(watched.SerializeToString())
    values = dict(zip(names, session.run(names, dict(feeds)), strict=True)) | dict(feeds)
    return {
        name: Range(
            low=min(float(value.min()), 0.0),
            high=max(float(value.max()), 0.0),
            magnitude=float(np.abs(value).max()),
        )
        for name, value in values.items()
        if value.dtype == np.float32
    }


def _quantize(
    model: onnx.ModelProto,
    placement: PlacementName,
    ranges: Mapping[str, Range],
    **changes: Any,
) -> tuple[onnx.ModelProto, QuantizationResult]:
    loaded = ir.serde.deserialize_model(model)
    result = quantize_static(loaded, PLACEMENTS[placement], ranges, _options(placement, **changes))
    written = ir.serde.serialize_model(loaded)
    onnx.checker.check_model(written, full_check=True)
    return written, result


def _node(model: onnx.ModelProto, op_type: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == op_type][number]


def _producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if name in node.output), None)


def _constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(
        numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name
    )


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, fused: bool) -> np.ndarray:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(feeds))[0]


def _fused_operators(model: onnx.ModelProto, directory: Path) -> list[str]:
    """What ONNX Runtime makes of a model when it loads it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options)
    loaded = onnx.load(directory / "optimized.onnx")
    return [node.op_type for node in loaded.graph.node]


@pytest.mark.parametrize("placement", [ORT, TRT])
def test_the_residual_connection_keeps_the_unrounded_numbers(placement: PlacementName) -> None:
    model = parse(RESIDUAL, RESIDUAL_WEIGHTS)
    feeds = {"x": random(20, 8)}
    quantized, result = _quantize(model, placement, _observe(model, feeds))

    assert len(result.quantized) == 2
    assert _node(quantized, "Add", 1).input[1] == "x"
    source = _producer(quantized, _node(quantized, "MatMul").input[0])
    assert source is not None
    assert source.op_type == "DequantizeLinear"
    pair = _producer(quantized, source.input[0])
    assert pair is not None
    assert (pair.op_type, pair.input[0]) == ("QuantizeLinear", "x")


def test_for_tensorrt_zero_points_are_zero_and_results_and_biases_are_left_alone(
    tmp_path: Path,
) -> None:
    for name, text, weights, shape in (
        ("residual", RESIDUAL, RESIDUAL_WEIGHTS, (9, 8)),
        ("gemm", GEMM, GEMM_WEIGHTS, (9, 8)),
        ("conv", CONV, CONV_WEIGHTS, (2, 3, 6, 6)),
    ):
        model = parse(text, weights)
        quantized, _ = _quantize(model, TRT, _observe(model, {"x": random(*shape)}))
        pairs = [
            n for n in quantized.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}
        ]
        for node in pairs:
            zero_point = _constant(quantized, node.input[2])
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        readers = [
            node.op_type
            for pair in pairs
            if pair.op_type == "DequantizeLinear"
            for node in quantized.graph.node
            if pair.output[0] in node.input
        ]
        assert set(readers) <= {"MatMul", "Gemm", "Conv"}
        for node in quantized.graph.node:
            if len(node.input) > 2 and node.op_type in {"Gemm", "Conv"}:
                assert node.input[2] == "bias"
        path = tmp_path / f"{name}.onnx"
        onnx.save(quantized, path)
        assert read_engine_graph(path).problems == ()


@pytest.mark.parametrize(
    ("text", "weights", "shape", "axis", "channels"),
    [
        (RESIDUAL, RESIDUAL_WEIGHTS, (9, 8), 1, 16),
        (GEMM, GEMM_WEIGHTS, (9, 8), 0, 16),
        (CONV, CONV_WEIGHTS, (2, 3, 6, 6), 0, 4),
    ],
    ids=["matmul", "gemm_transposed", "conv"],
)
def test_weights_have_a_scale_for_each_output(
    text: str, weights: dict[str, np.ndarray], shape: tuple[int, ...], axis: int, channels: int
) -> None:
    model = parse(text, weights)
    ranges = _observe(model, {"x": random(*shape)})
    quantized, _ = _quantize(model, TRT, ranges)
    layer = next(n for n in quantized.graph.node if n.op_type in {"MatMul", "Gemm", "Conv"})
    weight = _producer(quantized, layer.input[1])
    assert weight is not None
    assert [a.i for a in weight.attribute if a.name == "axis"] == [axis]
    scale = _constant(quantized, weight.input[1])
    assert scale.shape == (channels,)
    original = next(iter(weights.values()))
    shaped = scale.reshape([-1 if n == axis else 1 for n in range(original.ndim)])
    restored = _constant(quantized, weight.input[0]).astype(np.float32) * shaped
    assert np.all(np.abs(restored - original) <= 0.5001 * shaped)

    whole, _ = _quantize(model, TRT, ranges, per_channel=False)
    layer = next(n for n in whole.graph.node if n.op_type in {"MatMul", "Gemm", "Conv"})
    weight = _producer(whole, layer.input[1])
    assert weight is not None
    assert _constant(whole, weight.input[1]).shape == ()


@pytest.mark.parametrize("placement", [ORT, TRT])
@pytest.mark.parametrize(
    ("text", "weights", "shape"),
    [
        (RESIDUAL, RESIDUAL_WEIGHTS, (50, 8)),
        (GEMM, GEMM_WEIGHTS, (50, 8)),
        (CONV, CONV_WEIGHTS, (8, 3, 6, 6)),
    ],
    ids=["residual", "gemm", "conv"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_the_numbers_stay_close(
    text: str,
    weights: dict[str, np.ndarray],
    shape: tuple[int, ...],
    placement: PlacementName,
    fused: bool,
) -> None:
    model = parse(text, weights)
    feeds = {"x": random(*shape)}
    quantized, _ = _quantize(model, placement, _observe(model, feeds))
    wanted, found = _run(model, feeds, fused=False), _run(quantized, feeds, fused=fused)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.03


@pytest.mark.parametrize(
    ("text", "weights", "shape", "kernels"),
    [
        # With three axes, as in a transformer; with two, ONNX Runtime makes a Gemm of MatMul and Add.
        (
            RESIDUAL.replace("batch, 8", "batch, sequence, 8"),
            RESIDUAL_WEIGHTS,
            (2, 9, 8),
            ["MatMulIntegerToFloat", "MatMulIntegerToFloat"],
        ),
        (GEMM, GEMM_WEIGHTS, (9, 8), ["QGemm"]),
        (CONV, CONV_WEIGHTS, (2, 3, 6, 6), ["QLinearConv", "QLinearConv"]),
        (
            CONV.replace("Relu(inner)", "Clip(inner, zero, six)"),
            CONV_WEIGHTS | {"zero": np.array(0, np.float32), "six": np.array(0.5, np.float32)},
            (2, 3, 6, 6),
            ["QLinearConv", "QLinearConv"],
        ),
        (
            CONV.replace("Relu(inner)", "Clip(inner, low, high)"),
            CONV_WEIGHTS | {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)},
            (2, 3, 6, 6),
            ["QLinearConv", "QLinearConv"],
        ),
    ],
    ids=["matmul", "gemm", "conv", "conv-relu6", "conv-clip"],
)
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_onnxruntime_finds_its_kernels(
    text: str,
    weights: dict[str, np.ndarray],
    shape: tuple[int, ...],
    kernels: list[str],
    activation: str,
    tmp_path: Path,
) -> None:
    model, feeds = parse(text, weights), {"x": random(*shape)}
    quantized, _ = _quantize(model, ORT, _observe(model, feeds), activation_dtype=activation)
    wanted, found = _run(model, feeds, fused=False), _run(quantized, feeds, fused=True)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
    operators = _fused_operators(quantized, tmp_path)
    products = {"MatMul", "Gemm", "Conv", "QGemm", "QLinearConv", "MatMulIntegerToFloat"}
    assert [operator for operator in operators if operator in products] == kernels


def test_for_onnxruntime_convolutions_write_eight_bits_and_chains_share_them() -> None:
    model = parse(CONV, CONV_WEIGHTS)
    quantized, _ = _quantize(model, ORT, _observe(model, {"x": random(2, 3, 6, 6)}))
    operators = [node.op_type for node in quantized.graph.node]
    # x, the result behind Relu, and the output: the second layer reads the pair of the first.
    assert operators.count("QuantizeLinear") == 3
    behind = _producer(quantized, _node(quantized, "Conv", 1).input[0])
    assert behind is not None
    first = _producer(quantized, behind.input[0])
    assert first is not None
    assert first.input[0] == _node(quantized, "Relu").output[0]
    assert quantized.graph.output[0].name == "y"
    bias = _producer(quantized, _node(quantized, "Conv").input[2])
    assert bias is not None
    integers = _constant(quantized, bias.input[0])
    assert integers.dtype == np.int32
    restored = integers * _constant(quantized, bias.input[1])
    np.testing.assert_allclose(restored, CONV_WEIGHTS["bias"], atol=1e-3)


def test_for_onnxruntime_a_relu_has_its_zero_point_at_the_lowest_level() -> None:
    model = parse(RESIDUAL, RESIDUAL_WEIGHTS)
    quantized, _ = _quantize(model, ORT, _observe(model, {"x": random(20, 8)}))
    pair = next(
        n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "active"
    )
    zero_point = _constant(quantized, pair.input[2])
    assert zero_point.dtype == np.uint8
    assert zero_point == 0


def test_products_of_two_computed_tensors_stay_float() -> None:
    model = parse(
        """
        scores (float[batch, 4, 4] x) => (float[batch, 4, 4] y)
        {
            turned = Transpose<perm = [0, 2, 1]>(x)
            inner = MatMul(x, turned)
            y = MatMul(inner, weight)
        }
        """,
        {"weight": random(4, 4)},
    )
    _, result = _quantize(model, TRT, _observe(model, {"x": random(3, 4, 4)}))
    assert len(result.quantized) == 1
    assert [reason for _, reason in result.kept_float] == ["both factors are computed"]
    assert (result.weight_coverage, result.layer_coverage) == (1.0, 1.0)


def test_the_range_of_a_value_is_found_through_what_keeps_its_numbers() -> None:
    model = parse(
        """
        flat (float[batch, 2, 4] x) => (float[rows, 3] y)
        {
            shape = Constant<value = int64[2] {-1, 4}>()
            rows = Reshape(x, shape)
            copy = Identity(rows)
            y = MatMul(copy, weight)
        }
        """,
        {"weight": random(4, 3)},
    )
    ranges = {"x": Range(low=-2.0, high=2.0, magnitude=2.0)}
    quantized, _ = _quantize(model, TRT, ranges)
    pair = _node(quantized, "QuantizeLinear")
    assert _constant(quantized, pair.input[1]) == np.float32(2 / 127)


def test_a_tensor_without_a_range_is_named() -> None:
    model = parse(RESIDUAL, RESIDUAL_WEIGHTS)
    ranges = _observe(model, {"x": random(20, 8)})
    del ranges["active"], ranges["biased"]
    with pytest.raises(QuantizationError, match=r"tensor `active`, read by .*, has no range"):
        _quantize(model, TRT, ranges)


def test_nodes_are_excluded_by_pattern_and_reported() -> None:
    model = parse(RESIDUAL, RESIDUAL_WEIGHTS)
    for node, name in zip(model.graph.node, ("up", "bias", "relu", "down", "sum"), strict=True):
        node.name = name
    ranges = _observe(model, {"x": random(20, 8)})
    quantized, result = _quantize(model, TRT, ranges, exclude_nodes=("d*n",))
    assert result.quantized == ("up",)
    assert result.kept_float == (("down", "excluded by `d*n`"),)
    assert (result.weight_coverage, result.layer_coverage) == (0.5, 0.5)
    assert "second" in {tensor.name for tensor in quantized.graph.initializer}
    with pytest.raises(
        QuantizationError, match=r"`middle` matches no layer .* `up`, `down`"
    ) as none:
        _quantize(model, TRT, ranges, exclude_nodes=("up", "middle"))
    assert "inspect model.onnx --layers" in none.value.hint


def test_operators_that_are_not_asked_for_stay_float() -> None:
    model = parse(CONV, CONV_WEIGHTS)
    _, result = _quantize(model, ORT, {}, op_types=("MatMul",))
    assert result.quantized == ()
    assert {reason for _, reason in result.kept_float} == {"Conv is not among op_types"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GEMM.replace("transB = 1", "transB = 1, beta = 2.0"), "it scales its bias"),
        (GEMM.replace("y = Gemm", "twice = Add(bias, bias) y = Gemm").replace("t, bias)", "t, twice)"),
         "its bias is computed"),
        (GEMM.replace("transB = 1", "transB = 1, alpha = 2.0"),
         "it scales its product but not its bias"),
        (GEMM.replace("x, weight, bias", "x, weight, one"),
         "its bias is not one number for each of 16 outputs"),
    ],
    ids=["scaled", "computed", "product-scaled", "one-for-all"],
)  # fmt: skip
def test_a_bias_that_cannot_be_an_integer_keeps_the_layer_float_for_onnxruntime_alone(
    text: str, reason: str
) -> None:
    model = parse(text, GEMM_WEIGHTS | {"one": random(1, seed=5)})
    feeds = {"x": random(20, 8)}
    ranges = _observe(model, feeds)
    _, result = _quantize(model, ORT, ranges)
    assert [why for _, why in result.kept_float] == [reason]
    quantized, result = _quantize(model, TRT, ranges)
    assert len(result.quantized) == 1
    wanted, found = _run(model, feeds, fused=False), _run(quantized, feeds, fused=False)
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("is_per_channel", [True, False])
@pytest.mark.parametrize("kind", ["gemm", "conv"])
def test_a_channel_of_tiny_weights_keeps_its_bias(kind: str, is_per_channel: bool) -> None:
    text, weights, shape = (
        (GEMM, GEMM_WEIGHTS, (20, 8)) if kind == "gemm" else (CONV, CONV_WEIGHTS, (2, 3, 6, 6))
    )
    name = "weight" if kind == "gemm" else "first"
    tiny = weights[name].copy()
    tiny[1] *= 1e-12
    if not is_per_channel:
        tiny *= 1e-12
    bias = weights["bias"].copy()
    bias[1] = 3.0
    model, feeds = parse(text, weights | {name: tiny, "bias": bias}), {"x": random(*shape)}
    quantized, _ = _quantize(model, ORT, _observe(model, feeds), per_channel=is_per_channel)
    wanted = _run(model, feeds, fused=False)
    for fused in (False, True):
        found = _run(quantized, feeds, fused=fused)
        assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("magnitude", [0.0, 1e-44, 1e-38])
def test_an_input_of_nearly_nothing_leaves_the_bias(magnitude: float) -> None:
    bias = GEMM_WEIGHTS["bias"].copy()
    bias[3] = 0.0
    model = parse(GEMM, GEMM_WEIGHTS | {"bias": bias})
    found = Range(low=-magnitude, high=magnitude, magnitude=magnitude)
    quantized, _ = _quantize(model, ORT, {"x": found})
    for tensor in quantized.graph.initializer:
        if tensor.name.endswith("_scale"):
            assert (numpy_helper.to_array(tensor) >= np.finfo(np.float32).tiny).all()
    for fused in (False, True):
        result = _run(quantized, {"x": np.zeros((2, 8), np.float32)}, fused=fused)
        np.testing.assert_allclose(result, [bias, bias], atol=1e-4)


def test_layers_share_a_weight_unless_the_bias_of_one_needs_larger_scales() -> None:
    text = """
    twice (float[batch, 8] x) => (float[batch, 8] y)
    {
        first = Gemm(x, weight, small)
        active = Relu(first)
        second = Gemm(active, weight, small)
        again = Relu(second)
        y = Gemm(again, weight, large)
    }
    """
    weights = {
        "weight": random(8, 8, seed=1) * np.float32(1e-3),
        "small": random(8, seed=2),
        "large": random(8, seed=3) * np.float32(1e4),
    }
    model, feeds = parse(text, weights), {"x": random(20, 8)}
    quantized, _ = _quantize(model, ORT, _observe(model, feeds))
    stored = [_producer(quantized, _node(quantized, "Gemm", n).input[1]) for n in range(3)]
    assert stored[0] == stored[1] != stored[2]
    names = [tensor.name for tensor in quantized.graph.initializer]
    assert len(names) == len(set(names))
    wanted, found = _run(model, feeds, fused=False), _run(quantized, feeds, fused=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


HALF_LAYER = """
layer (float16[batch, 8] x) => (float16[batch, 16] y)
{
    y = MatMul(x, weight)
}
"""


def test_a_float16_graph_gets_float16_scales_and_weights_rounded_with_them() -> None:
    weight = random(8, 16, seed=9).astype(np.float16)
    model = parse(HALF_LAYER, {"weight": weight})
    ranges = {"x": Range(low=-3.0, high=3.0, magnitude=3.0)}
    quantized, _ = _quantize(model, TRT, ranges)
    stored = _producer(quantized, _node(quantized, "MatMul").input[1])
    assert stored is not None
    scale = _constant(quantized, stored.input[1])
    assert scale.dtype == np.float16
    integers = _constant(quantized, stored.input[0]).astype(np.float32)
    exact = np.clip(np.rint(weight.astype(np.float32) / scale.astype(np.float32)), -127, 127)
    np.testing.assert_array_equal(integers, exact)


def test_float16_needs_opset_19() -> None:
    model = parse(HALF_LAYER, {"weight": random(8, 16).astype(np.float16)})
    model.opset_import[0].version = 18
    with pytest.raises(QuantizationError, match="opset 18, only since 19"):
        _quantize(model, TRT, {"x": Range(low=-1.0, high=1.0, magnitude=1.0)})


@given(
    st.floats(-1e4, 0), st.floats(0, 1e4), st.sampled_from(["int8", "uint8"]),
    st.sampled_from([np.float32, np.float16]),
)  # fmt: skip
def test_an_activation_inside_its_range_is_off_by_half_a_step_at_most(
    low: float, high: float, dtype: Any, scale_dtype: Any
) -> None:
    found = Range(low=low, high=high, magnitude=max(-low, high))
    scale, zero_point = activation_scale(found, dtype, np.dtype(scale_dtype))
    assert scale > 0
    limits = np.iinfo(zero_point.dtype)
    step, zero = float(scale), int(zero_point)
    values = np.linspace(low, high, 101)
    rounded = (np.clip(np.rint(values / step) + zero, limits.min, limits.max) - zero) * step
    # The scale itself is rounded, and so is the zero point; the ends pay for both.
    tolerance = 0.51 if dtype == "int8" else 1.01
    slack = 255 * step * (2.0**-10 if scale_dtype == np.float16 else 2.0**-22)
    assert np.abs(values - rounded).max() <= tolerance * step + slack
