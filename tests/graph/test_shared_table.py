"""A tied table is stored once: one packed weight serves the lookup and the product, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pipeline.graph.fusions.matching import node_name
from pipeline.graph.matmul_nbits import pack_products
from pipeline.graph.shared_table import SharedTable, share_tables
from pipeline.graph.token_costs import token_costs
from pipeline.graph.weight_only import quantize_weights
from tests.graph.models import parse, random, write
from tests.graph.test_weight_only import request

TOKENS, SIZE = 512, 64
MODEL = """
language_model (int64[batch, sequence] ids) => (float[batch, sequence, 512] logits)
{
    embedding = Gather(table, ids)
    hidden = MatMul(embedding, inner)
    active = Relu(hidden)
    logits = MatMul(active, head)
}
"""
TABLE = random(TOKENS, SIZE, seed=1)
WEIGHTS = {
    "table": TABLE,
    "inner": random(SIZE, SIZE, seed=2),
    "head": np.ascontiguousarray(TABLE.T),
}
IDS = {"ids": np.random.default_rng(0).integers(0, TOKENS, (2, 5))}


def _packed(weights: dict[str, Any] | None = None, **asked: Any) -> ir.Model:
    model = ir.serde.deserialize_model(parse(MODEL, weights or WEIGHTS))
    quantize_weights(model, request(method="clip", **{"embeddings": "int4"} | asked))
    pack_products(model, accuracy_level=0)
    return model


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)


def _run(model: ir.Model, level: str = "ORT_ENABLE_ALL") -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    content = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, IDS)[0]


@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_DISABLE_ALL"])
def test_one_initializer_serves_both_ends_with_the_same_numbers(level: str) -> None:
    model = _packed()
    wanted, before = _run(model, level), _bytes(model)
    (shared,) = share_tables(model)
    assert (shared.lookup, shared.product, shared.reason) == ("embedding_rows", "logits", "")
    nodes = {node_name(node): node for node in model.graph}
    weight, scales = nodes["logits"].inputs[1:3]
    assert weight is not None
    assert weight.dtype == ir.DataType.UINT8
    rows = nodes["embedding_rows"].inputs[0]
    assert rows is not None
    assert rows.producer().inputs[0] is weight  # type: ignore[union-attr]
    assert nodes["embedding_rows"].inputs[2] is scales
    assert "table_quantized" not in model.graph.initializers
    table = TOKENS * SIZE // 2 + 4 * TOKENS * SIZE // 32
    assert shared.bytes_saved == table
    assert before - _bytes(model) == table - 16  # the shape of the rows
    np.testing.assert_array_equal(_run(model, level), wanted)


def test_what_a_token_costs_does_not_change(tmp_path: Any) -> None:
    model = _packed()
    apart = write(tmp_path / "apart", ir.serde.serialize_model(model))
    share_tables(model)
    together = write(tmp_path / "together", ir.serde.serialize_model(model))
    assert token_costs(together) == token_costs(apart)
    onnx.checker.check_model(onnx.load(together), full_check=False)


def _other_head() -> dict[str, Any]:
    head = WEIGHTS["head"].copy()
    head[3, 400] += 3
    return WEIGHTS | {"head": head}


@pytest.mark.parametrize(
    ("weights", "asked", "reason"),
    [
        (_other_head(), {}, "their numbers differ"),
        (WEIGHTS, {"lm_head": "int8"}, "the product has 8 bits"),
    ],
    ids=["untied", "other bits"],
)
def test_what_is_not_the_same_stays_apart_with_a_reason(
    weights: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    model = _packed(weights, **asked)
    before = [node.op_type for node in model.graph]
    (found,) = share_tables(model)
    assert found.reason.startswith(reason)
    assert found.bytes_saved == 0
    assert [node.op_type for node in model.graph] == before


def test_a_scale_that_differs_in_a_bit_keeps_both() -> None:
    model = _packed()
    scale = model.graph.initializers["table_scale"]
    assert scale.const_value is not None
    numbers = scale.const_value.numpy().copy()
    numbers[7, 1] = np.nextafter(numbers[7, 1], np.float32(9))
    scale.const_value = ir.tensor(numbers, name="table_scale")
    assert share_tables(model)[0].reason.startswith("their numbers differ")


def test_there_is_nothing_to_share_without_a_table_in_4_bits() -> None:
    model = _packed(embeddings="float")
    assert share_tables(model) == ()
    said = SharedTable(lookup="a", product="b", reason="c").as_json()
    assert (said["is_shared"], said["reason"]) == (False, "c")
