"""Outliers are taken out of what is quantised, and the graph stays the same function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.outlier_channels import MOST, channel_divisors, damp_outlier_channels
from pipeline.graph.outlier_neurons import MOST_NEURONS, outliers, split_outlier_neurons
from pipeline.graph.quantization import QuantizationOptions, quantize_dynamic
from tests.graph.models import parse, random

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE, INNER = 32, 96

BLOCK = """
block (float[batch, sequence, 32] x) => (float[batch, sequence, 32] y)
{
    normal = LayerNormalization<axis = -1>(x, gamma, beta)
    up = MatMul(normal, first)
    biased = Add(up, bias)
    active = Gelu(biased)
    down = MatMul(active, second)
    shifted = Add(down, shift)
    y = Add(shifted, normal)
}
"""


def _weights(*, neuron: bool = True, channel: bool = True) -> dict[str, np.ndarray]:
    """A block in which channel 3 is large and, through one connection, neuron 7."""
    weights = {
        "gamma": 1 + 0.1 * random(SIZE, seed=1),
        "beta": 0.1 * random(SIZE, seed=2),
        "first": 0.1 * random(SIZE, INNER, seed=3),
        "bias": 0.1 * random(INNER, seed=4),
        "second": 0.1 * random(INNER, SIZE, seed=5),
        "shift": 0.1 * random(SIZE, seed=6),
    }
    if channel:
        weights["gamma"][3] = 6
        weights["first"][3] *= 0.1
    if neuron:
        weights["first"][3, 7] = 3.0
    return weights


def _feeds() -> dict[str, np.ndarray]:
    return {"x": random(4, 16, SIZE, seed=9)}


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))[0]


def _written(model: ir.Model) -> onnx.ModelProto:
    RemoveUnusedNodesPass()(model)
    written = ir.serde.serialize_model(model)
    onnx.checker.check_model(written, full_check=True)
    return written


def _quantized(model: onnx.ModelProto, **changes: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    fields: dict[str, Any] = {
        "per_channel": True,
        "weight_dtype": "int8",
        "reduce_range": False,
        "quantize_embeddings": False,
        "treat_outliers": True,
    }
    loaded = ir.serde.deserialize_model(model)
    result = quantize_dynamic(loaded, QuantizationOptions(**(fields | changes)))
    return ir.serde.serialize_model(loaded), result.as_json(1.0)


def test_the_split_block_computes_the_same() -> None:
    model = parse(BLOCK, _weights())
    loaded = ir.serde.deserialize_model(model)
    (found,) = split_outlier_neurons(loaded.graph)
    assert found.neurons == (7,)
    written = _written(loaded)
    np.testing.assert_allclose(
        _run(written, _feeds()), _run(model, _feeds()), rtol=1e-4, atol=1e-4
    )
    products = [node for node in written.graph.node if node.op_type == "MatMul"]
    assert len(products) == 4
    rest = {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer}
    first = next(array for name, array in rest.items() if name.endswith("rest_first"))
    assert not first[:, 7].any()


def test_the_damped_tensor_gives_the_same_and_the_residual_connection_reads_it_as_it_was() -> None:
    model = parse(BLOCK, _weights(neuron=False))
    loaded = ir.serde.deserialize_model(model)
    (found,) = damp_outlier_channels(loaded.graph)
    assert found.channels == (3,)
    written = _written(loaded)
    np.testing.assert_allclose(
        _run(written, _feeds()), _run(model, _feeds()), rtol=1e-4, atol=1e-4
    )
    assert "normal" in next(node for node in written.graph.node if node.output[0] == "y").input


def test_outliers_no_longer_spoil_the_quantised_block() -> None:
    model = parse(BLOCK, _weights())
    wanted = _run(model, _feeds())
    plain, _ = _quantized(model, treat_outliers=False)
    treated, facts = _quantized(model)

    def error(found: onnx.ModelProto) -> float:
        return float(np.linalg.norm(_run(found, _feeds()) - wanted) / np.linalg.norm(wanted))

    assert error(treated) < 0.6 * error(plain)
    assert list(facts["float_neurons"].values()) == [[7]]
    assert list(facts["damped_channels"].values()) == [[3]]
    assert len(facts["quantized"]) == 2
    assert facts["coverage"]["quantized_matmuls"] == 1.0
    assert facts["coverage"]["quantized_weights"] == pytest.approx(1 - 1 / INNER)


def test_a_block_without_outliers_is_left_as_it_is() -> None:
    model = parse(BLOCK, _weights(neuron=False, channel=False))
    plain, _ = _quantized(model, treat_outliers=False)
    treated, facts = _quantized(model)
    assert facts["float_neurons"] == {}
    assert facts["damped_channels"] == {}
    assert treated.SerializeToString(deterministic=True) == plain.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    "text",
    [
        BLOCK.replace("Gelu(biased)", "Sigmoid(biased)"),  # f(0) is not 0
        BLOCK.replace("y = Add(shifted, normal)", "other = MatMul(active, second) y = Add(shifted, other)"),
        BLOCK.replace("Add(up, bias)", "Add(up, up)"),
    ],
    ids=["activation", "shared", "no_bias"],
)  # fmt: skip
def test_other_blocks_are_not_split(text: str) -> None:
    loaded = ir.serde.deserialize_model(parse(text, _weights()))
    assert split_outlier_neurons(loaded.graph) == ()


def test_a_weight_that_something_else_reads_is_not_changed() -> None:
    text = BLOCK.replace("y = Add(shifted, normal)", "again = MatMul(x, first) z = Add(again, biased) y = Add(shifted, normal)")  # fmt: skip
    model = parse(text, _weights())
    loaded = ir.serde.deserialize_model(model)
    assert damp_outlier_channels(loaded.graph) == ()
    assert split_outlier_neurons(loaded.graph) == ()


def test_the_number_of_float_neurons_has_a_limit() -> None:
    strengths = np.ones(100, dtype=np.float32)
    strengths[20:40] = 10
    assert outliers(strengths) == tuple(range(20, 20 + MOST_NEURONS))
    assert outliers(np.zeros(5, dtype=np.float32)) == ()


@given(st.integers(0, 1000))
def test_divisors_are_bounded_and_touch_only_large_channels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.lognormal(0, 1, 20).astype(np.float32)
    matrix = (generator.standard_normal((20, 30)) * generator.integers(0, 2, (20, 1))).astype(
        np.float32
    )
    divisors = channel_divisors(weights, matrix)
    assert np.all((divisors >= 1) & (divisors <= MOST))
    assert np.all(divisors[weights <= 2 * np.median(weights)] == 1)


@pytest.mark.parametrize(
    "text", [BLOCK, BLOCK.replace("shifted = Add(down, shift)", "shifted = Add(down, normal)")]
)
@pytest.mark.parametrize(("kept", "is_split"), [("up", True), ("down", False)])
def test_a_product_that_stays_float_is_spared_no_outliers(
    text: str, kept: str, is_split: bool
) -> None:
    """Of the second product of a block no tensor is coarsened; the first one's result still is."""
    model = parse(text, _weights())
    wanted = _run(model, _feeds())
    made, facts = _quantized(model, exclude_nodes=(kept,))
    assert bool(facts["float_neurons"]) == is_split
    (other,) = {"up", "down"} - {kept}
    assert facts["quantized"] == [other]
    assert {"node": kept, "reason": f"excluded by `{kept}`"} in facts["kept_float"]
    found = _run(made, _feeds())
    assert float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)) < 0.05
    integer = [node for node in made.graph.node if node.op_type == "MatMulInteger"]
    assert len(integer) == 1
    given_back, _ = _quantized(model, given_back=frozenset({kept}))
    np.testing.assert_array_equal(_run(given_back, _feeds()), found)
