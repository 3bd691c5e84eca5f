"""Static quantisation to float8_e4m3fn: where it is written, and what becomes of the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, numpy_helper

from pipeline.calibration.methods import Range
from pipeline.errors import QuantizationError
from pipeline.graph.half import cast_to_half
from pipeline.graph.half_rules import BFLOAT16, FLOAT16, HalfType
from pipeline.graph.qdq import QdqOptions, activation_scale, quantize_static
from pipeline.graph.qdq_placements import PLACEMENTS
from pipeline.graph.quantized_weights import FLOAT8, WeightType, quantize_weight, to_float8
from pipeline.graph.stand_in import write_stand_in
from tests.graph.models import parse, random, run, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK = """
block (float[batch, 8] x) => (float[batch, 8] y)
{
    hidden = Gemm(x, first, bias)
    active = Relu(hidden)
    back = MatMul(active, second)
    y = Add(back, x)
}
"""
WEIGHTS = {
    "first": random(8, 16, seed=1),
    "second": random(16, 8, seed=2),
    "bias": random(16, seed=3),
}
RANGES = {
    "x": Range(low=-4.0, high=4.0, magnitude=4.0),
    "active": Range(low=0.0, high=12.0, magnitude=12.0),
}
X = random(64, 8, seed=5)


def _options(**changes: Any) -> QdqOptions:
    fields: dict[str, Any] = {
        "per_channel": True,
        "activation_dtype": "float8",
        "weight_dtype": "float8",
        "reduce_range": False,
        "quantize_embeddings": False,
        "op_types": ("MatMul", "Gemm", "Conv"),
        "exclude_nodes": (),
    }
    return QdqOptions(**(fields | changes))


def _quantize(
    model: onnx.ModelProto, half: HalfType | None = None, **changes: Any
) -> onnx.ModelProto:
    loaded = ir.serde.deserialize_model(model)
    if half is not None:
        cast_to_half(loaded, half)
    quantize_static(loaded, PLACEMENTS["tensorrt"], RANGES, _options(**changes))
    written = ir.serde.serialize_model(loaded)
    onnx.checker.check_model(written, full_check=True)
    return written


def _maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if name in node.output), None)


def _stored(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize("half", [None, FLOAT16, BFLOAT16], ids=["fp32", "fp16", "bf16"])
def test_pairs_stand_before_inputs_and_nowhere_else(half: HalfType | None) -> None:
    model = _quantize(parse(BLOCK, WEIGHTS), half)
    layers = [node for node in model.graph.node if node.op_type in {"Gemm", "MatMul"}]
    assert len(layers) == 2
    stored = _stored(model)
    for layer in layers:
        activation, weight = (_maker(model, name) for name in layer.input[:2])
        assert activation is not None
        assert weight is not None
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        pair = _maker(model, activation.input[0])
        assert pair is not None
        assert pair.op_type == "QuantizeLinear"
        assert list(pair.input[1:]) == list(activation.input[1:])
        zero = stored[pair.input[2]]
        assert zero.data_type == TensorProto.FLOAT8E4M3FN
        assert not numpy_helper.to_array(zero).astype(np.float32).any()
        assert stored[weight.input[0]].data_type == TensorProto.FLOAT8E4M3FN
        assert list(stored[weight.input[1]].dims) == [16 if layer is layers[0] else 8]
        kind = np.float32 if half is None else half.array
        assert numpy_helper.to_array(stored[pair.input[1]]).dtype == kind
    gemm, product = layers
    assert _maker(model, gemm.input[2]) is None  # the bias stays as it was
    (residual,) = (node for node in model.graph.node if node.op_type == "Add")
    assert product.output[0] in residual.input
    other = next(name for name in residual.input if name != product.output[0])
    assert _maker(model, other) is None or _maker(model, other).op_type == "Cast"  # type: ignore[union-attr]


def test_scales_make_448_of_the_largest_number() -> None:
    model = _quantize(parse(BLOCK, WEIGHTS))
    stored = _stored(model)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            numbers, scale = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
            np.testing.assert_array_equal(np.abs(numbers.astype(np.float32)).max(axis=0), 448)
            assert scale.min() > 0
    (first, *_) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    assert numpy_helper.to_array(stored[first.input[1]]) == np.float32(4 / 448)


@pytest.mark.parametrize("half", [None, FLOAT16, BFLOAT16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("is_per_channel", [True, False])
def test_the_numbers_stay_close(
    tmp_path: Path, half: HalfType | None, is_per_channel: bool
) -> None:
    model = parse(BLOCK, WEIGHTS)
    (expected,) = run(write(tmp_path / "float", model), {"x": X})
    quantized = _quantize(model, half, per_channel=is_per_channel)
    path = write(tmp_path / "float8", quantized)
    path = write_stand_in(path.parent, tmp_path).model / "model.onnx"
    (given,) = run(path, {"x": X})
    noise = np.linalg.norm(given - expected) / np.linalg.norm(expected)
    assert 0.003 < noise < 0.06  # of three bits, and no worse


def test_what_is_beyond_the_range_is_cut_and_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "float8", _quantize(parse(BLOCK, WEIGHTS)))
    (inside,) = run(path, {"x": np.full((1, 8), 4.0, dtype=np.float32)})
    large = np.full((1, 8), 400.0, dtype=np.float32)
    (beyond,) = run(path, {"x": large})
    assert np.isfinite(beyond).all()
    np.testing.assert_allclose(beyond - large, inside - 4.0, rtol=1e-4, atol=1e-3)


def test_weights_are_rounded_as_onnx_runtime_does(tmp_path: Path) -> None:
    """The operator that computes activations in float8 gives the numbers that we store."""
    numbers = np.concatenate([random(4000, seed=8) * 200, [0.0, 448, 464.1, -1e4, 2**-10, 15.5]])
    numbers = numbers.astype(np.float32)
    model = parse("g (float[n] x) => (float[n] y) { y = Identity(x) }")
    zero = onnx.helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    model.graph.initializer.extend([zero, numpy_helper.from_array(np.array(1, np.float32), "one")])
    del model.graph.node[:]
    model.graph.node.extend(
        [
            onnx.helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"]),
        ]
    )
    (theirs,) = run(write(tmp_path / "model", model), {"x": numbers})
    np.testing.assert_array_equal(to_float8(numbers).astype(np.float32), theirs)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.booleans(),
    st.sampled_from([np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]),
)
def test_no_weight_moves_by_more_than_a_sixteenth(
    matrix: NDArray[np.float32], is_per_channel: bool, scale_dtype: np.dtype[Any]
) -> None:
    kind = WeightType(dtype="float8", bits=8)
    axis = 1 if is_per_channel else None
    made = quantize_weight(matrix, kind, axis=axis, scale_dtype=scale_dtype)
    assert made.values.dtype == made.zero_point.dtype == FLOAT8
    assert made.scale.dtype == scale_dtype
    assert made.scale.shape == (matrix.shape[1:] if is_per_channel else ())
    scale = made.scale.astype(np.float64)
    restored = made.values.astype(np.float64) * scale
    limit = np.maximum(np.abs(matrix) / 16, scale * 2.0**-10) * (1 + 1e-5)
    assert (np.abs(restored - matrix) <= limit).all()
    assert (restored[matrix == 0] == 0).all()


def test_an_activation_of_zeros_has_a_scale() -> None:
    for kind in (np.float32, np.float16):
        empty = Range(low=0.0, high=0.0, magnitude=0.0)
        scale, zero = activation_scale(empty, "float8", np.dtype(kind))
        assert scale > 0
        assert zero.dtype == FLOAT8


def test_float8_needs_opset_19() -> None:
    model = parse(BLOCK, WEIGHTS)
    model.opset_import[0].version = 18
    with pytest.raises(QuantizationError, match="there is no float8 in opset 18, only since 19"):
        _quantize(model)
