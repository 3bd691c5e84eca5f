"""What a graph computes with decides how far it may be from the checkpoint: weights decide, not names."""

from __future__ import annotations

import pytest

from pipeline.candidates import precision_of
from pipeline.graph.model_facts import LayerFacts
from tests.candidates.test_interface import facts, logits, tensor


def layer(dtype: str, parameters: int = 100) -> LayerFacts:
    return LayerFacts(node="n", op="MatMul", weight="w", dtype=dtype, parameters=parameters)


@pytest.mark.parametrize(
    ("ops", "dtypes", "arithmetic", "quantization"),
    [
        (["MatMul"], ["float"], "float32", ""),
        (["MatMul"], ["float16"], "float16", ""),
        (["MatMul"], ["float", "float16"], "float16", ""),
        (["MatMul"], ["bfloat16"], "bfloat16", ""),
        (["MatMulInteger", "DynamicQuantizeLinear"], ["int8"], "quantized", "dynamic"),
        (["com.microsoft::DynamicQuantizeMatMul"], ["int8"], "quantized", "dynamic"),
        (["QuantizeLinear", "DequantizeLinear"], ["int8"], "quantized", "static"),
        (["com.microsoft::QLinearAdd"], ["uint8"], "quantized", "static"),
        (["com.microsoft::MatMulNBits"], ["uint8"], "quantized", "weights"),
        (["com.microsoft::MatMulNBits"], ["uint8", "float16"], "quantized", "weights"),
        (["DequantizeLinear"], ["int8"], "quantized", "weights"),
        (["Gather"], ["int32", "float"], "float32", ""),
    ],
)
def test_operators_and_weights_say_what_a_graph_computes_with(
    ops: list[str], dtypes: list[str], arithmetic: str, quantization: str
) -> None:
    found = precision_of(
        facts(
            [tensor("input_ids")],
            [logits()],
            op_counts=dict.fromkeys(ops, 1),
            layers=tuple(map(layer, dtypes)),
        )
    )
    assert (found.arithmetic, found.quantization) == (arithmetic, quantization)


def test_one_half_constant_does_not_buy_the_tolerance_of_float16() -> None:
    found = facts(
        [tensor("input_ids")],
        [logits()],
        weight_bytes={"float": 400, "float16": 2},
        layers=(layer("float"),),
    )
    assert precision_of(found).arithmetic == "float32"


def test_shares_are_of_the_parameters() -> None:
    found = precision_of(
        facts(
            [tensor("input_ids")],
            [logits()],
            op_counts={"MatMulInteger": 1},
            layers=(layer("int8", 300), layer("float", 100)),
        )
    )
    assert found.quantized_weights == pytest.approx(0.75)
