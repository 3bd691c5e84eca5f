from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from pipeline.errors import StageError
from pipeline.graph import half
from pipeline.graph.files import save_ir_model
from pipeline.graph.half import HalfCast, cast_to_half
from pipeline.graph.half_rules import BFLOAT16, FLOAT16, HalfType
from pipeline.graph.stand_in import write_stand_in
from tests.graph.models import parse, random, write
from tests.graph.models import run as run_as_written

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MEAN_POOLING = """
pool (float[batch, sequence, 4] x, int64[batch, sequence] mask) => (float[batch, 4] y)
{
    hidden = MatMul(x, w)
    two = Constant<value = int64[1] {2}>()
    one = Constant<value = int64[1] {1}>()
    real = Cast<to = 1>(mask)
    column = Unsqueeze(real, two)
    chosen = Mul(hidden, column)
    total = ReduceSum<keepdims = 0>(chosen, one)
    count = ReduceSum<keepdims = 0>(column, one)
    least = Constant<value = float {1e-9}>()
    safe = Clip(count, least)
    y = Div(total, safe)
}
"""
VARIANCE = """
norm (float[n, 8] x) => (float[n, 8] y)
{
    hidden = MatMul(x, w)
    axis = Constant<value = int64[1] {-1}>()
    mean = ReduceMean(hidden, axis)
    centred = Sub(hidden, mean)
    two = Constant<value = float {2.0}>()
    square = Pow(centred, two)
    variance = ReduceMean(square, axis)
    epsilon = Constant<value = float {1e-12}>()
    shifted = Add(variance, epsilon)
    deviation = Sqrt(shifted)
    y = Div(centred, deviation)
}
"""
ATTENTION_MASK = """
scores (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y)
{
    zero = Constant<value = float {0.0}>()
    lowest = Constant<value = float {-3.4028234663852886e+38}>()
    fill = Where(mask, zero, lowest)
    score = MatMul(x, w)
    masked = Add(score, fill)
    y = Softmax<axis = -1>(masked)
}
"""


BUCKETS = """
positions (int64[n] distance) => (float[n, 1] y)
{
    real = Cast<to = 1>(distance)
    factor = Constant<value = float {12.7}>()
    log = Log(real)
    scaled = Mul(log, factor)
    bucket = Cast<to = 7>(scaled)
    y = Gather(table, bucket)
}
"""
ROTARY = """
rotary (int64[n, 1] position) => (float[n, 3] y)
{
    real = Cast<to = 1>(position)
    angle = MatMul(real, frequency)
    y = Cos(angle)
}
"""
ROUNDED = """
rounded (float[n, 4] x) => (int64[n, 4] y)
{
    hidden = MatMul(x, w)
    y = Cast<to = 7>(hidden)
}
"""


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of the reference implementation, in the very types the graph says.

    ONNX Runtime's CPU provider (1.31) has few float16 kernels: it computes such nodes in float32
    and drops the casts between them, so that an overflow does not show.
    """
    with np.errstate(all="ignore"):
        return list(onnx.reference.ReferenceEvaluator(str(path)).run(None, dict(feeds)))


def cast(
    model: onnx.ModelProto, directory: Path, kind: HalfType = FLOAT16
) -> tuple[Path, HalfCast]:
    """Cast a model and write it."""
    changed = ir.serde.deserialize_model(model)
    result = cast_to_half(changed, kind)
    directory.mkdir(parents=True, exist_ok=True)
    path = save_ir_model(changed, directory)
    onnx.checker.check_model(path, full_check=True)
    return path, result


def cast_naively(model: onnx.ModelProto, directory: Path) -> Path:
    """What a tool does that knows no reductions: everything in float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = ir.serde.deserialize_model(
        convert_float_to_float16(model, keep_io_types=True, op_block_list=[])
    )
    half.graph.sort()  # the converter puts its casts last
    return write(directory, ir.serde.serialize_model(half))


def both(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], tmp_path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, HalfCast]:
    """Outputs in float32, cast by us, cast naively; and what we did."""
    original = write(tmp_path / "original", model)
    ours, result = cast(model, tmp_path / "ours")
    naive = cast_naively(model, tmp_path / "naive")
    return run(original, feeds)[0], run(ours, feeds)[0], run(naive, feeds)[0], result


def reasons(result: HalfCast) -> dict[str, str]:
    return {kept.op_type: kept.reason for kept in result.kept}


def test_a_pooled_sum_that_overflows_float16_stays_finite(tmp_path: Path) -> None:
    model = parse(MEAN_POOLING, {"w": np.eye(4, dtype=np.float32)})
    feeds = {
        "x": np.full((1, 400, 4), 200.0, dtype=np.float32),  # the sum is 80000
        "mask": np.ones((1, 400), dtype=np.int64),
    }
    expected, ours, naive, result = both(model, feeds, tmp_path)
    assert not np.isfinite(naive).all()
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert "sums many elements" in reasons(result)["ReduceSum"]
    assert "element by element" in reasons(result)["Div"]


def test_the_least_count_of_a_mean_is_not_rounded_to_zero(tmp_path: Path) -> None:
    model = parse(MEAN_POOLING, {"w": np.eye(4, dtype=np.float32)})
    feeds = {"x": random(2, 3, 4), "mask": np.zeros((2, 3), dtype=np.int64)}
    expected, ours, _, result = both(model, feeds, tmp_path)
    np.testing.assert_array_equal(ours, expected)  # 0 / 1e-9, and not 0 / 0
    assert reasons(result)["Clip"] == "its constant 1e-09 is zero in float16"


def test_a_variance_that_overflows_float16_stays_finite(tmp_path: Path) -> None:
    model = parse(VARIANCE, {"w": np.eye(8, dtype=np.float32)})
    feeds = {"x": 1000 * random(3, 8)}  # squares are near 1e6
    expected, ours, naive, result = both(model, feeds, tmp_path)
    assert not np.allclose(naive, expected, atol=0.1)
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    assert {"Pow", "ReduceMean", "Add", "Sqrt"} <= set(reasons(result))


def test_the_fill_of_a_mask_is_finite_and_the_mask_stays_in_float16(tmp_path: Path) -> None:
    model = parse(ATTENTION_MASK, {"w": random(4, 4)})
    path, result = cast(model, tmp_path / "ours")
    assert (result.kept, result.clamped_constants) == ((), ("lowest",))
    mask = np.array([[True, True, False, False], [False] * 4])
    x = 50 * random(2, 4)
    (output,) = run(path, {"x": x, "mask": mask})
    (expected,) = run(write(tmp_path / "original", model), {"x": x, "mask": mask})
    np.testing.assert_allclose(output[0], expected[0], atol=2e-3)
    assert np.isfinite(output).all()  # the second row is masked altogether
    assert (output[0, 2:] == 0).all()


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=lambda kind: kind.short)
@pytest.mark.parametrize(
    "fill",
    [
        "full = Expand(lowest, shape)",
        "full = ConstantOfShape<value = float[1] {-3.4028234663852886e+38}>(shape)",
        """one = Constant<value = int64[1] {1}>() part = Reshape(lowest, one)
        full = Concat<axis = 0>(part, part, part, part)""",
    ],
    ids=["expand", "constant_of_shape", "concat"],
)
def test_a_fill_that_is_spread_first_is_finite_too(
    fill: str, kind: HalfType, tmp_path: Path
) -> None:
    text = f"""
    scores (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y)
    {{
        lowest = Constant<value = float {{-3.4028234663852886e+38}}>()
        shape = Shape(x)
        {fill}
        score = MatMul(x, w)
        masked = Where(mask, score, full)
        y = Softmax<axis = -1>(masked)
    }}
    """
    model = parse(text, {"w": random(4, 4)})
    path, result = cast(model, tmp_path, kind)
    assert len(result.clamped_constants) == 1
    assert result.kept == ()
    feeds = {"x": random(2, 4), "mask": np.array([[True, True, False, False], [False] * 4])}
    (output,) = run(path, feeds)
    assert (output[0, 2:] == 0).all()
    np.testing.assert_allclose(output[1], 0.25)  # masked altogether, and no NaN


def test_infinity_itself_stays_infinite(tmp_path: Path) -> None:
    text = ATTENTION_MASK.replace("-3.4028234663852886e+38", "-inf")
    path, result = cast(parse(text, {"w": random(4, 4)}), tmp_path)
    assert result.clamped_constants == ()
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model(path).graph.initializer
    }
    assert stored["lowest_fp16"] == -np.inf


def test_buckets_of_distances_are_those_of_float32(tmp_path: Path) -> None:
    table = np.arange(128, dtype=np.float32).reshape(128, 1)
    model = parse(BUCKETS, {"table": table})
    expected, ours, naive, result = both(model, {"distance": np.arange(1, 4000)}, tmp_path)
    assert (naive != expected).any()
    np.testing.assert_array_equal(ours, expected)
    assert {"Log", "Mul"} <= set(reasons(result))
    assert "makes integers" in reasons(result)["Log"]


def test_angles_of_far_positions_keep_their_fraction(tmp_path: Path) -> None:
    model = parse(ROTARY, {"frequency": np.array([[1.0, 0.3, 0.01]], dtype=np.float32)})
    positions = np.arange(4000, 4100).reshape(-1, 1)
    expected, ours, naive, result = both(model, {"position": positions}, tmp_path)
    assert np.abs(naive - expected).max() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert "is of an angle" in reasons(result)["MatMul"]


def test_integers_made_of_activations_do_not_keep_the_model_in_float32(tmp_path: Path) -> None:
    model = parse(ROUNDED, {"w": random(4, 4)})
    _, result = cast(model, tmp_path)
    assert list(reasons(result)) == ["Cast"]


def test_a_weight_that_float16_cannot_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    weight = random(4, 4)
    weight[2, 1] = 70000.0
    model = parse(ATTENTION_MASK, {"w": weight})
    with pytest.raises(StageError, match="weight `w` has 70000, which is infinite in float16"):
        cast(model, tmp_path)


def test_inputs_and_outputs_keep_their_names_and_types(tmp_path: Path) -> None:
    model = parse(VARIANCE, {"w": np.eye(8, dtype=np.float32)})
    path, result = cast(model, tmp_path / "ours")
    after = onnx.load_model(path)
    assert after.graph.input == model.graph.input
    assert after.graph.output == model.graph.output
    assert result.share > 0.95  # the constants of the variance are left
    (weight,) = (t for t in after.graph.initializer if t.name.startswith("w"))
    assert weight.data_type == onnx.TensorProto.FLOAT16


def test_a_weight_that_both_types_read_is_stored_in_both(tmp_path: Path) -> None:
    text = """
    g (float[n, 4] x) => (float[n, 4] y, float[4] s)
    {
        y = MatMul(x, w)
        axis = Constant<value = int64[1] {0}>()
        s = ReduceSum<keepdims = 0>(w, axis)
    }
    """
    _, result = cast(parse(text, {"w": random(4, 4)}), tmp_path)
    assert result.share == 0.0  # the float32 copy is still there in full


def test_operators_of_one_runtime_are_refused(tmp_path: Path) -> None:
    model = parse("g (float[n] x) => (float[n] y) { y = com.microsoft.Gelu(x) }")
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(StageError, match=r"com\.microsoft::Gelu"):
        cast(model, tmp_path)


def test_a_node_with_a_subgraph_is_refused(tmp_path: Path) -> None:
    text = """
    g (bool c, float[n] x) => (float[n] y)
    {
        y = If(c)<then_branch = t () => (float[n] a) { a = Relu(x) },
                  else_branch = e () => (float[n] b) { b = Neg(x) }>
    }
    """
    with pytest.raises(StageError, match="has a subgraph"):
        cast(parse(text), tmp_path)


def run_bfloat16(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], directory: Path
) -> tuple[np.ndarray, HalfCast]:
    """The first output in bfloat16, every result rounded to it; and what the cast did."""
    path, result = cast(model, directory / "bf16", BFLOAT16)
    stand_in = write_stand_in(path.parent, directory)
    return run_as_written(stand_in.model / "model.onnx", feeds)[0], result


def everything_is_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no node stays in float32."""
    monkeypatch.setattr(half, "nodes_to_keep", lambda *_: {})


def test_bfloat16_keeps_the_last_bits_of_a_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parse(MEAN_POOLING, {"w": np.eye(4, dtype=np.float32)})
    feeds = {
        "x": 1 + random(1, 513, 4) / 4,
        "mask": np.ones((1, 513), dtype=np.int64),  # 513 has ten bits
    }
    (expected,) = run(write(tmp_path / "original", model), feeds)
    ours, result = run_bfloat16(model, feeds, tmp_path / "ours")
    np.testing.assert_allclose(ours, expected, rtol=4e-4)
    found = reasons(result)
    assert found["ReduceSum"] == "sums many elements: the sum may lose its last bits"
    assert "keeps only 8 bits of each term" in found["Mul"]
    assert "65504" not in "".join(found.values())  # nothing overflows
    everything_is_cast(monkeypatch)
    naive, _ = run_bfloat16(model, feeds, tmp_path / "naive")
    assert np.abs(naive / expected - 1).max() > 1e-3


def test_bfloat16_keeps_a_variance_and_its_epsilon(tmp_path: Path) -> None:
    model = parse(VARIANCE, {"w": np.eye(8, dtype=np.float32)})
    feeds = {"x": 1000 * random(3, 8)}
    (expected,) = run(write(tmp_path / "original", model), feeds)
    ours, result = run_bfloat16(model, feeds, tmp_path)
    np.testing.assert_allclose(ours, expected, atol=0.02)
    assert {"Pow", "ReduceMean", "Add", "Sqrt"} <= set(reasons(result))


def test_buckets_of_distances_are_those_of_float32_in_bfloat16_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.arange(128, dtype=np.float32).reshape(128, 1)
    model = parse(BUCKETS, {"table": table})
    feeds = {"distance": np.arange(1, 4000)}
    (expected,) = run(write(tmp_path / "original", model), feeds)
    ours, result = run_bfloat16(model, feeds, tmp_path / "ours")
    np.testing.assert_array_equal(ours, expected)
    assert "makes integers" in reasons(result)["Log"]
    everything_is_cast(monkeypatch)
    naive, _ = run_bfloat16(model, feeds, tmp_path / "naive")
    assert (naive != expected).mean() > 0.05


def test_angles_of_positions_keep_their_fraction_in_bfloat16(tmp_path: Path) -> None:
    model = parse(ROTARY, {"frequency": np.array([[1.0, 0.3, 0.01]], dtype=np.float32)})
    feeds = {"position": np.arange(300, 400).reshape(-1, 1)}
    (expected,) = run(write(tmp_path / "original", model), feeds)
    ours, result = run_bfloat16(model, feeds, tmp_path)
    np.testing.assert_allclose(ours, expected, atol=2**-8)
    assert "bfloat16 has no fraction beyond 256" in reasons(result)["MatMul"]


def test_a_weight_that_float16_cannot_hold_is_none_to_bfloat16(tmp_path: Path) -> None:
    weight = random(4, 4)
    weight[2, 1] = 70000.0
    path, result = cast(parse(ROUNDED, {"w": weight}), tmp_path, BFLOAT16)
    assert result.vanished == 0
    (stored,) = (t for t in onnx.load_model(path).graph.initializer if t.name == "w_bf16")
    assert stored.data_type == onnx.TensorProto.BFLOAT16
    assert onnx.numpy_helper.to_array(stored).astype(np.float32)[2, 1] == 70144.0
    weight[2, 1] = 3.4e38
    with pytest.raises(
        StageError, match=r"weight `w` has 3\.4e\+38, which is infinite in bfloat16"
    ):
        cast(parse(ROUNDED, {"w": weight}), tmp_path / "again", BFLOAT16)


def test_an_operator_without_bfloat16_says_since_when_it_has_it(tmp_path: Path) -> None:
    text = """
    g (float[n, 2, 8, 8] x) => (float[n, 3, 8, 8] y)
    {
        y = Conv<pads = [1, 1, 1, 1]>(x, w)
    }
    """
    model = parse(text, {"w": random(3, 2, 3, 3)})
    _, result = cast(model, tmp_path / "old", BFLOAT16)
    assert reasons(result) == {
        "Conv": "Conv of opset 20 is not defined for bfloat16, but since opset 22"
    }
    model.opset_import[0].version = 22
    _, result = cast(model, tmp_path / "new", BFLOAT16)
    assert (result.kept, result.share) == ((), 1.0)
