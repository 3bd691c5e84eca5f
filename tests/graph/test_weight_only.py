"""Weights in 4 and 8 bits: what is stored is what was there, rounded, and runtimes compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pipeline.errors import QuantizationError, StageError
from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.opsets import CHANGED, means_the_same, raise_opset
from pipeline.graph.quantization_result import QuantizationResult
from pipeline.graph.validity import require_valid
from pipeline.graph.weight_methods.base import LARGEST
from pipeline.graph.weight_only import WeightOnlyRequest, quantize_weights
from pipeline.graph.zero_points import quantize_with_zero_points
from tests.graph.models import parse, random, run, write

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = """
two (float[batch, 64] x) => (float[batch, 48] y)
{
    hidden = MatMul(x, first)
    active = Relu(hidden)
    y = Gemm<transB = 1>(active, second, bias)
}
"""
WEIGHTS = {
    "first": random(64, 96, seed=1),
    "second": random(48, 96, seed=2),
    "bias": random(48, seed=3),
}


def request(**changes: Any) -> WeightOnlyRequest:
    """4 bits in blocks of 32 unless it is said otherwise."""
    fields: dict[str, Any] = {
        "bits": 4,
        "block_size": 32,
        "method": "rtn",
        "op_types": ("MatMul", "Gemm"),
        "exclude_nodes": (),
    }
    return WeightOnlyRequest(**(fields | changes))


EIGHT_BITS = {"bits": 8, "block_size": None}


def quantized(
    text: str, weights: dict[str, np.ndarray], **changes: Any
) -> tuple[onnx.ModelProto, QuantizationResult]:
    """A quantised model and what is said of it."""
    model = ir.serde.deserialize_model(parse(text, weights))
    result = quantize_weights(model, request(**changes))
    return ir.serde.serialize_model(model), result


def _restored(weight: np.ndarray, axis: int, **changes: Any) -> np.ndarray:
    asked = request(**changes)
    made = quantize_blocks(
        weight, axis=axis, bits=asked.bits, block_size=asked.block_size, method=asked.method
    )
    scale = made.scale.astype(np.float32)
    if asked.block_size is None:
        scale = np.expand_dims(scale, axis)
    else:
        scale = np.repeat(scale, asked.block_size, axis=axis)
    return made.values.astype(np.float32) * scale


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block_size", [16, 32, None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_no_weight_is_further_than_half_a_step_from_what_it_was(
    axis: int, block_size: int | None, bits: int, dtype: Any
) -> None:
    weight = (random(64, 96, seed=4) * 0.05).astype(dtype)
    weight[:, 3] = 0
    numbers = weight.astype(np.float32)
    restored = _restored(weight, axis, bits=bits, block_size=block_size)
    blocks = np.moveaxis(numbers, axis, 1)
    blocks = blocks.reshape(blocks.shape[0], -1, block_size or blocks.shape[1])
    steps = np.abs(blocks).max(axis=2, keepdims=True) / LARGEST[bits]  # type: ignore[index]
    gaps = np.abs(np.moveaxis(numbers - restored, axis, 1).reshape(blocks.shape))
    # Scales in 16 bits are rounded up by one unit at most.
    assert (gaps <= steps * 0.5 * (1 + 2.0**-7) + 1e-12).all()


def test_clipping_has_less_error_and_never_more_in_any_block() -> None:
    weight = np.random.default_rng(5).standard_t(4, (128, 64)).astype(np.float32)
    errors = {
        method: np.square(weight - _restored(weight, 0, method=method))
        .reshape(4, 32, 64)
        .sum(axis=1)
        for method in ("rtn", "clip")
    }
    assert (errors["clip"] <= errors["rtn"] * (1 + 1e-5)).all()
    assert errors["clip"].sum() < 0.95 * errors["rtn"].sum()


def _numbers(made: Any, size: int) -> np.ndarray:
    scale = np.repeat(made.scale.astype(np.float32), size, axis=0)
    return made.values.astype(np.float32) * scale


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("method", ["rtn", "clip", "hqq", "k_quant"])
def test_scales_with_signs_lose_less_and_none_is_needed_for_the_lowest_integer(
    method: str, size: int
) -> None:
    weight = np.random.default_rng(6).standard_normal((256, 64)).astype(np.float32)
    options: dict[str, Any] = {"axis": 0, "bits": 4, "block_size": size, "method": method}
    plain = quantize_blocks(weight, **options)
    signed = quantize_blocks(weight, **options, has_signs=True)
    assert (plain.scale > 0).all()
    assert int(plain.values.astype(int).min()) == -8
    assert 0.4 < (signed.scale < 0).mean() < 0.6
    lost, usual = (np.square(weight - _numbers(made, size)).sum() for made in (signed, plain))
    assert lost < 0.95 * usual


@pytest.mark.parametrize("size", [32, 128])
def test_a_weight_loses_no_more_than_by_the_quantiser_of_onnx_runtime(size: int) -> None:
    """What `clip` writes for `MatMulNBits`, with and without zero points, against its `DEFAULT`."""
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    weight = np.random.default_rng(7).standard_t(5, (256, 64)).astype(np.float32)
    for is_symmetric in (True, False):
        shape = (64, 256 // size)
        packed = np.zeros((*shape, size // 2), np.uint8)
        scale = np.zeros(shape, np.float32)
        zeros = np.zeros((64, (shape[1] + 1) // 2), np.uint8)
        quantizer.quantize_matmul_4bits(packed, weight, scale, zeros, size, 64, 256, is_symmetric)
        integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*shape, size)
        middle = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(64, -1)[:, : shape[1], None]
        offset = 8 if is_symmetric else middle.astype(np.float32)
        theirs = ((integers - offset) * scale[..., None]).reshape(64, 256).T
        if is_symmetric:
            made = quantize_blocks(
                weight, axis=0, bits=4, block_size=size, method="clip", has_signs=True
            )
            ours = _numbers(made, size)
        else:
            zeroed = quantize_with_zero_points(weight, axis=0, block_size=size, method="clip")
            zero = np.repeat(zeroed.zero_point.astype(np.float32), size, axis=0)
            scales = np.repeat(zeroed.scale, size, axis=0)
            ours = (zeroed.values.astype(np.float32) - zero) * scales
        assert np.square(weight - ours).sum() < np.square(weight - theirs).sum()


def test_scales_are_positive_where_there_is_next_to_nothing() -> None:
    weight = np.zeros((32, 4), np.float16)
    weight[:, 1] = np.float16(6e-8)  # the smallest there is
    weight[:, 2] = 1
    made = quantize_blocks(weight, axis=0, bits=4, block_size=32, method="clip")
    assert (made.scale > 0).all()
    assert made.values.astype(int)[:, 2].tolist() == [7] * 32


@pytest.mark.parametrize("method", ["rtn", "clip"])
@pytest.mark.parametrize("changes", [{}, {"block_size": None}, EIGHT_BITS], ids=str)
def test_small_weights_of_float16_keep_their_bits(changes: dict[str, Any], method: str) -> None:
    """Their steps are below 2^-14, where float16 has fewer bits; the weights are whole numbers of 2^-24."""
    weight = random(64, 8)
    large, small = (
        _restored((weight * factor).astype(np.float16), 0, method=method, **changes) / factor
        for factor in (1.0, 0.0003)
    )
    errors = [np.linalg.norm(weight - made) / np.linalg.norm(weight) for made in (large, small)]
    assert errors[1] < errors[0] * 1.2


def test_a_block_that_does_not_divide_the_inputs_is_an_error() -> None:
    with pytest.raises(ValueError, match="40 inputs are no whole number of blocks of 32"):
        quantize_blocks(random(40, 4), axis=0, bits=4, block_size=32, method="rtn")


@pytest.mark.parametrize("changes", [{}, {"block_size": None}, EIGHT_BITS], ids=str)
@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_the_graph_computes_with_the_rounded_weights(
    tmp_path: Path, changes: dict[str, Any], method: str
) -> None:
    model, result = quantized(LAYERS, WEIGHTS, method=method, **changes)
    assert result.quantized == ("hidden", "y")
    assert result.weight_coverage == result.layer_coverage == 1.0
    require_valid(write(tmp_path / "made", model))
    rounded = dict(WEIGHTS)
    rounded["first"] = _restored(WEIGHTS["first"], 0, method=method, **changes)
    rounded["second"] = _restored(WEIGHTS["second"], 1, method=method, **changes)
    plain = write(tmp_path / "plain", parse(LAYERS, rounded))
    feeds = {"x": random(5, 64, seed=6)}
    got, wanted = run(tmp_path / "made" / "model.onnx", feeds), run(plain, feeds)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-4)


def test_what_users_of_onnxruntime_run_is_near_it(tmp_path: Path) -> None:
    """With all optimisations: its kernel for such products rounds activations to 8 bits."""
    import onnxruntime as ort

    model, _ = quantized(LAYERS, WEIGHTS)
    path = write(tmp_path / "made", model)
    feeds = {"x": random(5, 64, seed=6)}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    got, wanted = session.run(None, feeds)[0], run(path, feeds)[0]
    assert np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean()) < 0.02


def test_four_bits_take_half_a_byte_each_and_a_scale_for_each_block() -> None:
    model, _ = quantized(LAYERS, WEIGHTS)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, scale = tensors["second_quantized"], tensors["second_scale"]
    assert weight.data_type == onnx.TensorProto.INT4
    assert len(weight.raw_data) == 48 * 96 // 2
    assert list(scale.dims) == [48, 3]
    assert "second" not in tensors
    assert model.ir_version >= 10
    (node,) = [each for each in model.graph.node if each.input[0] == "second_quantized"]
    assert {each.name: each.i for each in node.attribute} == {"axis": 1, "block_size": 32}


def test_weights_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    """As those of large models do, two integers to a byte."""
    model = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    quantize_weights(model, request())
    inline = write(tmp_path / "inline", ir.serde.serialize_model(model))
    apart = tmp_path / "apart"
    apart.mkdir()
    save_ir_model(model, apart, inline_limit_bytes=0)
    assert (apart / "model.onnx_data").stat().st_size < 2 * (64 * 96 + 48 * 96) * 5 // 8
    feeds = {"x": random(5, 64, seed=6)}
    np.testing.assert_array_equal(run(apart / "model.onnx", feeds)[0], run(inline, feeds)[0])
    again = quantize_blocks(WEIGHTS["first"], axis=0, bits=4, block_size=32, method="rtn")
    stored = load_ir_model(apart / "model.onnx").graph.initializers["first_quantized"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), again.values)


def test_the_scale_has_the_type_of_the_graph() -> None:
    text = LAYERS.replace("float[", "float16[")
    weights = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    model, _ = quantized(text, weights)
    (scale,) = [each for each in model.graph.initializer if each.name == "first_scale"]
    assert scale.data_type == onnx.TensorProto.FLOAT16


KEPT = """
kept (float[batch, 40] x, float[40, 40] y, int64[batch] ids)
    => (float[batch, 40] a, float[batch, 40] b, float[batch, 40] c, float[batch, 40] d)
{
    a = MatMul(x, odd)
    b = MatMul(x, y)
    row = Gather(tied, ids)
    c = MatMul(row, tied)
    turned = Gemm<transB = 1>(x, shared)
    d = MatMul(turned, shared)
}
"""


def test_every_weight_that_stays_float_has_a_reason() -> None:
    weights = {name: random(40, 40, seed=7) for name in ("odd", "tied", "shared")}
    model, result = quantized(KEPT, weights, block_size=16)
    assert result.quantized == ()
    blocks = "its 40 inputs are no whole number of blocks of 16"
    assert dict(result.kept_float) == {
        "a": blocks, "b": "both factors are computed", "c": blocks, "turned": blocks, "d": blocks,
    }  # fmt: skip
    with pytest.raises(QuantizationError, match="no layer of this model could be quantised"):
        result.require_any()
    _, result = quantized(KEPT, weights, block_size=None)
    assert result.quantized == ("a",)
    assert dict(result.kept_float) == {
        "b": "both factors are computed",
        "c": "its weight is also read by `row`, as floats",
        "turned": "its weight is also read by `d`, along its other axis",
        "d": "its weight is also read by `turned`, along its other axis",
    }
    assert "tied" in {tensor.name for tensor in model.graph.initializer}


TIED = """
tied (float[batch, 32] x) => (float[batch, 32] y, float[batch, 32] z)
{
    y = MatMul(x, weight)
    z = MatMul(y, weight)
}
"""


def test_layers_that_share_a_weight_share_its_integers() -> None:
    model, result = quantized(TIED, {"weight": random(32, 32)})
    assert result.quantized == ("y", "z")
    assert [node.op_type for node in model.graph.node].count("DequantizeLinear") == 1


def test_a_weight_that_an_excluded_layer_needs_stays_whole() -> None:
    _, result = quantized(TIED, {"weight": random(32, 32)}, exclude_nodes=("z",))
    assert dict(result.kept_float) == {
        "y": "its weight is also read by `z`, as floats",
        "z": "excluded by `z`",
    }


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="`nothing` matches no layer"):
        quantized(LAYERS, WEIGHTS, exclude_nodes=("nothing",))


def test_convolutions_and_other_operators_stay_float() -> None:
    _, result = quantized(LAYERS, WEIGHTS, op_types=("Gemm",))
    assert dict(result.kept_float) == {"hidden": "MatMul is not among op_types"}
    text = "c (float[1, 2, 8] x) => (float[1, 4, 6] y) { y = Conv(x, w) }"
    _, result = quantized(text, {"w": random(4, 2, 3)})
    assert dict(result.kept_float) == {"y": "Conv has no weight-only form"}


@pytest.mark.parametrize("operator", sorted(CHANGED))
def test_operators_that_would_mean_something_else_are_refused(operator: str) -> None:
    bodies = {
        "GroupNormalization": "y = GroupNormalization<num_groups = 2>(x, two, two)",
        "AveragePool": "y = AveragePool<kernel_shape = [2, 2]>(x)",
        "Resize": "y = Resize(x, , scales)",
    }
    text = f"g (float[1, 4, 4, 4] x) => (float[a, b, c, d] y) {{ {bodies[operator]} }}"
    weights = {"two": random(2), "scales": np.ones(4, np.float32)}
    proto = parse(text, weights)
    proto.opset_import[0].version = 18
    model = ir.serde.deserialize_model(proto)
    with pytest.raises(StageError, match=rf"opset 18 and needs 21.*{operator} \(`y`\)") as caught:
        raise_opset(model, 21)
    assert "export.opset" in caught.value.hint
    assert model.opset_imports[""] == 18


@pytest.mark.parametrize(
    ("operator", "old", "new", "is_same"),
    [
        ("MatMul", 18, 23, True),
        ("Reshape", 18, 23, True),
        ("Conv", 18, 23, True),
        ("DFT", 18, 21, False),  # its axis became an input
        ("GridSample", 18, 21, False),  # its modes have other names
        ("NoSuchOperator", 18, 21, False),
    ],
)
def test_definitions_are_compared(operator: str, old: int, new: int, is_same: bool) -> None:
    assert means_the_same(operator, old, new) == is_same


def test_a_higher_opset_is_left_alone() -> None:
    proto = parse(LAYERS, WEIGHTS)
    proto.opset_import[0].version = 23
    model = ir.serde.deserialize_model(proto)
    raise_opset(model, 21)
    assert model.opset_imports[""] == 23


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", ["rtn", "clip", "hqq", "k_quant"])
@pytest.mark.parametrize("block_size", [64, None])
def test_neither_threads_nor_the_order_of_axes_in_memory_make_a_difference(
    dtype: Any, method: str, block_size: int | None
) -> None:
    """Parts of a weight are whole blocks of some outputs, and every one is done."""
    weight = random(192, 5000, seed=5).astype(dtype)
    weight[:64, 7] = 0
    weight[64:, 9] *= dtype(1e-3)
    options: dict[str, Any] = {"bits": 4, "block_size": block_size, "method": method}
    made = [
        quantize_blocks(each, axis=0, threads=threads, **options)
        for each in (weight, np.asfortranarray(weight))
        for threads in (1, 2)
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].values, other.values)
        np.testing.assert_array_equal(made[0].scale, other.scale)


@pytest.mark.parametrize("method", ["rtn", "clip"])
@pytest.mark.parametrize("block_size", [64, None])
def test_a_weight_and_its_transpose_are_rounded_alike(method: str, block_size: int | None) -> None:
    """Sums go in another order there: of scales that are next to equally good another may be taken."""
    weight = random(192, 3000, seed=6)
    options: dict[str, Any] = {"bits": 4, "block_size": block_size, "method": method}
    one = quantize_blocks(weight, axis=0, **options)
    other = quantize_blocks(np.ascontiguousarray(weight.T), axis=1, **options)
    scale = other.scale if block_size is None else other.scale.T
    is_same = one.scale == scale
    assert is_same.all() if method == "rtn" else is_same.mean() > 0.999
    blocks = is_same if block_size is not None else is_same[None]
    same = np.repeat(blocks, 192 // len(blocks), axis=0)
    np.testing.assert_array_equal(one.values[same], other.values.T[same])
