"""Attention becomes the operator of ONNX itself, with the same numbers; near misses have reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pipeline.engines.build import EngineRequest, build_engine
from pipeline.engines.builder_log import parse_layers
from pipeline.engines.facts import fused_attentions
from pipeline.engines.module import TENSORRT_RTX
from pipeline.errors import StageError
from pipeline.graph.engine_checks import read_engine_graph
from pipeline.graph.half import cast_to_half
from pipeline.graph.standard_attention import write_standard_attention
from tests.graph.fusions.graphs import (
    PLAIN,
    SPELLINGS,
    GraphBuilder,
    attention_model,
    feeds_for,
    operators,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"batch": 3, "sequence": 7, "memory": 5, "other": 5}
FOUR_AXES = sorted(name for name, each in SPELLINGS.items() if each.split == "four_axes")


def _rewritten(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int, list[str]]:
    """The rewritten model, how often the operator was written, and why not elsewhere."""
    model = ir.from_proto(proto)
    outcome = write_standard_attention(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made, outcome.fired, [refusal.reason for refusal in outcome.refused]


def _require_equal(
    proto: onnx.ModelProto, made: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> None:
    """Where the old graph makes numbers, the new one makes the same."""
    for expected, actual in zip(run(proto, feeds), run(made, feeds), strict=True):
        known = np.isfinite(expected)
        assert known.any()
        np.testing.assert_allclose(actual[known], expected[known], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOUR_AXES)
@pytest.mark.parametrize("masked_row", [False, True], ids=["padded", "one_row_masked_in_full"])
def test_every_spelling_with_heads_apart_gives_the_same_numbers(
    name: str, masked_row: bool
) -> None:
    proto = attention_model(SPELLINGS[name])
    made, fired, refused = _rewritten(proto)
    assert (fired, refused) == (1, [])
    assert "Softmax" not in [node.op_type for node in made.graph.node]
    assert made.opset_import[0].version == 23
    assert {node.domain for node in made.graph.node} == {""}
    _require_equal(proto, made, feeds_for(proto, SIZES, masked_row=masked_row))
    _require_equal(proto, made, feeds_for(proto, SIZES | {"sequence": 1, "batch": 1}))


def test_the_result_keeps_the_name_that_its_scope_is_known_by() -> None:
    proto = attention_model(PLAIN)
    product = [node for node in proto.graph.node if node.op_type == "MatMul"][-2]
    made, _, _ = _rewritten(proto)
    (node,) = [node for node in made.graph.node if node.op_type == "Attention"]
    assert list(node.output) == list(product.output)


@pytest.mark.parametrize("second", [(1, 4, "sequence", "sequence"), ("batch", 1, 1, "sequence")])
def test_masks_are_added_up(second: tuple[int | str, ...]) -> None:
    proto = attention_model(replace(PLAIN, mask="fill"), second_mask=list(second))
    made, fired, refused = _rewritten(proto)
    assert (fired, refused) == (1, [])
    _require_equal(proto, made, feeds_for(proto, SIZES, masked_row=True))


def test_a_mask_without_batch_and_heads_is_broadcast() -> None:
    changes = {"mask_shape": ["sequence", "sequence"]}
    proto = attention_model(replace(PLAIN, mask="fill"), **changes)
    made, fired, refused = _rewritten(proto)
    assert (fired, refused) == (1, [])
    _require_equal(proto, made, feeds_for(proto, SIZES, masked_row=True))


def grouped(groups: int = 3, *, value_groups: int | None = None, order: str = "beside") -> Any:
    """Keys and values with two heads, repeated for `2 * groups` of the query, and rotated positions."""
    g = GraphBuilder()
    x, angle = g.input("x", ["batch", "sequence", 24]), g.input("angle", ["sequence", 16])

    def heads(count: int) -> str:
        product = g.node("MatMul", x, g.weight(24, count * 16))
        split = g.node("Reshape", product, g.ints(0, 0, count, 16))
        return g.node("Transpose", split, perm=[0, 2, 1, 3])

    def rotated(value: str) -> str:
        return g.node("Add", g.node("Mul", value, g.node("Cos", angle)), g.node("Sin", angle))

    def repeated(value: str, times: int) -> str:
        axis = 2 if order == "beside" else 1
        shape = [
            g.shape_of(value, 0, 1),
            g.ints(2),
            g.ints(times),
            g.shape_of(x, 1, 2),
            g.ints(16),
        ]
        if order != "beside":
            shape[1], shape[2] = shape[2], shape[1]
        wide = g.node("Unsqueeze", value, g.ints(axis))
        wide = g.node("Expand", wide, g.node("Concat", *shape, axis=0))
        whole = [g.shape_of(value, 0, 1), g.ints(2 * times), g.shape_of(x, 1, 2), g.ints(16)]
        return g.node("Reshape", wide, g.node("Concat", *whole, axis=0))

    query = rotated(heads(2 * groups))
    key = repeated(rotated(heads(2)), groups)
    value = repeated(heads(2), groups)
    if value_groups is not None:
        value = heads(2 * groups)
    scores = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.node("Mul", scores, g.constant(0.3))
    kept = g.node("Cast", g.input("mask", ["sequence", "sequence"], TensorProto.INT64), to=9)
    scores = g.node("Where", kept, scores, g.constant(-np.inf))
    result = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
    merged = g.node("Transpose", result, perm=[0, 2, 1, 3])
    g.output(g.node("Reshape", merged, g.ints(0, 0, 32 * groups)))
    return g.model()


def test_repeated_heads_are_given_once() -> None:
    proto = grouped()
    made, fired, refused = _rewritten(proto)
    assert (fired, refused) == (1, [])
    assert [node.op_type for node in made.graph.node].count("Expand") <= 1  # of the mask
    feeds = feeds_for(proto, SIZES)
    feeds["mask"] = np.tril(np.ones((7, 7), np.int64))
    _require_equal(proto, made, feeds)


@pytest.mark.parametrize("changes", [{"value_groups": 1}, {"order": "one after the other"}])
def test_heads_that_are_repeated_otherwise_are_given_as_they_are(changes: dict[str, Any]) -> None:
    proto = grouped(**changes)
    made, fired, refused = _rewritten(proto)
    assert (fired, refused) == (1, [])
    feeds = feeds_for(proto, SIZES)
    feeds["mask"] = np.tril(np.ones((7, 7), np.int64))
    _require_equal(proto, made, feeds)


NEAR_MISSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "the softmax is taken over axis 1, not the last": (PLAIN, {"softmax_axis": 1}),
    "the query has 3 axes, not 4": (SPELLINGS["three_axes"], {}),
    "the mask is multiplied together with the scores": (PLAIN, {"scaled_after_mask": True}),
    "the scores are multiplied with -0.5": (PLAIN, {"scale": -2.0}),
    "the lengths of key and value differ: memory and other": (
        SPELLINGS["cross_attention"],
        {"value_of_another_sequence": True},
    ),
    "the attention weights are an output of the graph": (PLAIN, {"weights_are_output": True}),
    "masked scores are set to -10000, which adding cannot give": (
        SPELLINGS["filled"],
        {"fill": -10000.0},
    ),
}


@pytest.mark.parametrize("reason", sorted(NEAR_MISSES))
def test_what_is_not_proven_stays_with_its_reason(reason: str) -> None:
    spelling, changes = NEAR_MISSES[reason]
    proto = attention_model(spelling, **changes)
    model = ir.from_proto(proto)
    before = operators(model)
    outcome = write_standard_attention(model)
    assert outcome.fired == 0
    assert [refusal.reason for refusal in outcome.refused] == [reason]
    assert operators(model) == before
    assert model.opset_imports[""] == 20


def test_the_heads_before_they_are_merged_may_be_an_output() -> None:
    proto = attention_model(PLAIN, result_used_unmerged=True)
    made, fired, _ = _rewritten(proto)
    assert fired == 1
    assert [each.name for each in made.graph.output] == [each.name for each in proto.graph.output]
    _require_equal(proto, made, feeds_for(proto, SIZES))


def test_an_operator_that_means_something_else_in_opset_23_is_an_error() -> None:
    proto = attention_model(PLAIN)
    node = helper.make_node(
        "GroupNormalization", ["x", "g", "g"], ["normed"], "normed", num_groups=1
    )
    proto.graph.node.insert(0, node)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "g"))
    with pytest.raises(StageError, match=r"GroupNormalization \(`normed`\)"):
        write_standard_attention(ir.from_proto(proto))


@pytest.mark.parametrize("name", ["plain", "sdpa", "grouped"])
def test_the_engine_computes_it_without_a_product_of_its_own(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    # There is no kernel for smaller heads.
    spelling = replace(SPELLINGS.get(name, PLAIN), size=32)
    proto = grouped() if name == "grouped" else attention_model(spelling)
    model = ir.from_proto(proto)
    assert write_standard_attention(model).fired == 1
    cast_to_half(model)
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir()
    onnx.save(ir.to_proto(model), path)

    def sized(item: onnx.ValueInfoProto, size: int) -> tuple[int, ...]:
        return tuple(each.dim_value or size for each in item.type.tensor_type.shape.dim)

    profile = {
        item.name: (sized(item, 2), sized(item, 4), sized(item, 8)) for item in proto.graph.input
    }
    request = EngineRequest(
        module=TENSORRT_RTX, model=path, compute_capabilities=("sm89",), profiles=(profile,)
    )
    (tmp_path / "scratch").mkdir()
    layers = parse_layers(build_engine(request, tmp_path / "scratch").result.layers)
    (block,) = read_engine_graph(path).attentions
    assert len(block.nodes) == 1
    assert fused_attentions(layers, [block.nodes]) == 1
