"""AWQ: channels are scaled where it helps, and the graph computes the same, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.calibration.moments import Moments, MomentsIndex, TensorMoments
from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.channel_scaling import ScalingRequest, power_of_two_factors, scale_channels
from pipeline.parity.tolerances import TOLERANCES
from tests.graph.models import parse, random, run, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

INPUTS, HIDDEN = 64, 96
FEED_FORWARD = """
feed_forward (float[rows, 64] x) => (float[rows, 64] y)
{
    normed = LayerNormalization(x, gamma)
    gate = MatMul(normed, gate_weight)
    up = Gemm<transB = 1>(normed, up_weight, up_bias)
    switch = Sigmoid(gate)
    active = Mul(switch, up)
    y = MatMul(active, down_weight)
}
"""
SMALL = np.array([0, 1, 7, 40])
"""Channels that are rarely large, and whose weights are."""


def _weights() -> dict[str, np.ndarray]:
    """Four channels of the activation are 30 times as large as the others."""
    gamma = np.ones(INPUTS, np.float32)
    gamma[SMALL] = 30
    up_bias = random(HIDDEN, seed=6)
    up_bias[:3] = 40
    return {
        "gamma": gamma,
        "gate_weight": random(INPUTS, HIDDEN, seed=1) * np.float32(0.1),
        "up_weight": random(HIDDEN, INPUTS, seed=2) * np.float32(0.1),
        "up_bias": up_bias,
        "down_weight": random(HIDDEN, INPUTS, seed=3),
    }


def _text() -> str:
    return FEED_FORWARD


def _activations(seed: int, rows: int = 300) -> np.ndarray:
    return random(rows, INPUTS, seed=seed)


def _moments(directory: Path, model: onnx.ModelProto) -> Moments:
    """Of `normed` and `active`, as ONNX Runtime computes them."""
    proto = type(model)()
    proto.CopyFrom(model)
    names = ("normed", "active")
    proto.graph.output.extend(type(proto.graph.output[0])(name=name) for name in names)
    path = write(directory / "observed", proto)
    _, *values = run(path, {"x": _activations(0)})
    tensors = []
    for place, (name, rows) in enumerate(zip(names, values, strict=True)):
        tensors.append(TensorMoments(names=(name,), inputs=rows.shape[1], count=len(rows)))
        np.save(directory / f"{place:05d}.products.npy", rows.T @ rows / np.float32(len(rows)))
        np.save(directory / f"{place:05d}.magnitudes.npy", np.abs(rows).mean(axis=0))
    index = MomentsIndex(samples=1, has_products=True, tensors=tuple(tensors))
    (directory / "moments.json").write_text(index.model_dump_json())
    return Moments(directory)


REQUEST = ScalingRequest(bits=4, block_size=32)


def _scaled(directory: Path) -> tuple[onnx.ModelProto, onnx.ModelProto, Any]:
    directory.mkdir(exist_ok=True)
    proto = parse(_text(), _weights())
    moments = _moments(directory, proto)
    model = ir.serde.deserialize_model(proto)
    scaled = scale_channels(model, moments, REQUEST)
    return proto, ir.serde.serialize_model(model), scaled


def test_the_graph_computes_the_same_bits(tmp_path: Path) -> None:
    before, after, scaled = _scaled(tmp_path)
    assert [each.source for each in scaled] == ["normed", "active"]
    assert [each.products for each in scaled] == [("gate", "up"), ("y",)]
    assert all(each.loss_ratio < 0.9 and each.largest >= 2 for each in scaled)
    assert len(after.graph.node) == len(before.graph.node)
    feeds = {"x": _activations(5)}
    (wanted,) = run(write(tmp_path / "before", before), feeds)
    (got,) = run(write(tmp_path / "after", after), feeds)
    assert (wanted == got).all()


def test_rounded_weights_lose_less_behind_it(tmp_path: Path) -> None:
    before, after, _ = _scaled(tmp_path)
    feeds = {"x": _activations(5)}
    (wanted,) = run(write(tmp_path / "before", before), feeds)

    def lost(model: onnx.ModelProto, name: str) -> float:
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_weight"):
                from onnx import numpy_helper

                array = numpy_helper.to_array(tensor)
                axis = 1 if tensor.name == "up_weight" else 0
                made = quantize_blocks(array, axis=axis, bits=4, block_size=32, method="clip")
                whole = made.values.astype(np.float32) * np.repeat(made.scale, 32, axis=axis)
                tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
        (got,) = run(write(tmp_path / name, model), feeds)
        return float(np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean()))

    assert lost(after, "scaled") < 0.9 * lost(before, "plain")


def _multiply(name: str, rows: Any) -> Callable[[onnx.ModelProto], None]:
    def damage(model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        tensor = next(each for each in model.graph.initializer if each.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array[rows] *= 2
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return damage


@pytest.mark.parametrize("name", ["gamma", "gate_weight", "up_weight", "up_bias", "down_weight"])
def test_a_factor_that_is_missing_in_one_place_is_beyond_the_gate(
    tmp_path: Path, name: str
) -> None:
    """The stage's graph is compared with the checkpoint as float32, where noise is 1e-5 and less."""
    before, after, _ = _scaled(tmp_path)
    _multiply(name, SMALL)(after)
    feeds = {"x": _activations(5)}
    (wanted,) = run(write(tmp_path / "before", before), feeds)
    (got,) = run(write(tmp_path / "after", after), feeds)
    noise = np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())
    assert noise > 100 * TOLERANCES["float32"].limit(1e-6)


SHARED = {
    "an output": FEED_FORWARD.replace("y)\n", "y, float[rows, 64] normed)\n"),
    "another reader": FEED_FORWARD.replace("y = MatMul", "other = Add(normed, x)\n    y = MatMul"),
    "no weight before it": FEED_FORWARD.replace("LayerNormalization(x, gamma)", "Mul(x, x)"),
}


@pytest.mark.parametrize("case", sorted(SHARED))
def test_what_something_else_reads_is_left_alone(tmp_path: Path, case: str) -> None:
    moments = _moments(tmp_path, parse(_text(), _weights()))
    text = SHARED[case]
    proto = parse(text, _weights())
    model = ir.serde.deserialize_model(proto)
    assert [each.source for each in scale_channels(model, moments, REQUEST)] == ["active"]
    kept = {tensor.name: tensor for tensor in proto.graph.initializer}
    after = {tensor.name: tensor for tensor in ir.serde.serialize_model(model).graph.initializer}
    assert after["gamma"].raw_data == kept["gamma"].raw_data
    assert after["gate_weight"].raw_data == kept["gate_weight"].raw_data


def test_factors_are_powers_of_two_around_one() -> None:
    magnitudes = np.array([0.0, 1e-3, 0.1, 1.0, 50.0])
    factors = power_of_two_factors(magnitudes, 0.5)
    assert (np.log2(factors) == np.rint(np.log2(factors))).all()
    assert factors[0] == 1
    assert factors[1] < factors[2] < factors[3] < factors[4]
    assert (power_of_two_factors(magnitudes, 0.0) == 1).all()
    assert (power_of_two_factors(np.zeros(4), 0.5) == 1).all()
