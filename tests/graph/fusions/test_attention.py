from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from pipeline.graph.fusions import fuse_for_onnxruntime_cpu
from tests.graph.fusions.graphs import (
    PLAIN,
    SPELLINGS,
    GraphBuilder,
    attention_model,
    feeds_for,
    operators,
    run,
)

SIZES = {"batch": 3, "sequence": 7, "memory": 5, "other": 5, "a": 1}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("masked_row", [False, True], ids=["padded", "one_row_masked_in_full"])
def test_every_spelling_fuses_to_the_same_numbers(name: str, masked_row: bool) -> None:
    proto = attention_model(SPELLINGS[name])
    model = ir.from_proto(proto)

    report = fuse_for_onnxruntime_cpu(model)

    outcome = report.outcomes["attention"]
    assert (outcome.fired, outcome.refused) == (1, [])
    assert "Softmax" not in operators(model)
    for sizes in (SIZES, SIZES | {"batch": 1, "sequence": 1}):
        feeds = feeds_for(proto, sizes, masked_row=masked_row)
        (expected,) = run(proto, feeds)
        (actual,) = run(ir.to_proto(model), feeds)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["full", "infinite", "fill", "fill_infinite", "per_head"])
@pytest.mark.parametrize(
    "second", [(1, 4, "sequence", "sequence"), ("batch", 1, 1, "sequence")], ids=["heads", "keys"]
)
@pytest.mark.parametrize("masked_row", [False, True], ids=["padded", "one_row_masked_in_full"])
def test_a_bias_besides_the_mask_is_added_to_it(
    mask: str, second: tuple[int | str, ...], masked_row: bool
) -> None:
    proto = attention_model(replace(PLAIN, mask=mask), second_mask=list(second))
    model = ir.from_proto(proto)

    report = fuse_for_onnxruntime_cpu(model)

    assert (report.outcomes["attention"].fired, report.outcomes["attention"].refused) == (1, [])
    feeds = feeds_for(proto, SIZES, masked_row=masked_row)
    np.testing.assert_allclose(
        run(ir.to_proto(model), feeds)[0], run(proto, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_constants_may_be_nodes() -> None:
    proto = attention_model(SPELLINGS["sdpa"])
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in proto.graph.initializer
    ]
    nodes = [*constants, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = ir.from_proto(proto)

    report = fuse_for_onnxruntime_cpu(model)

    assert report.outcomes["attention"].fired == 1
    feeds = feeds_for(proto, SIZES, masked_row=True)
    np.testing.assert_allclose(
        run(ir.to_proto(model), feeds)[0], run(proto, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_outputs_of_the_graph_keep_their_names_even_when_two_become_one_value() -> None:
    proto = attention_model(SPELLINGS["plain"])
    merged = proto.graph.node[-2]
    assert merged.op_type == "Reshape"
    again = helper.make_node("Reshape", list(merged.input), ["again"], "again")
    proto.graph.node.append(again)
    del proto.graph.output[:]
    for name in (merged.output[0], "again"):
        proto.graph.output.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "sequence", 32])
        )
    model = ir.from_proto(proto)

    report = fuse_for_onnxruntime_cpu(model)

    assert report.outcomes["attention"].fired == 1
    assert [item.name for item in model.graph.outputs] == [merged.output[0], "again"]
    feeds = feeds_for(proto, SIZES)
    for expected, actual in zip(run(proto, feeds), run(ir.to_proto(model), feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_softmax_over_a_linear_layer_is_no_candidate() -> None:
    g = GraphBuilder()
    gate = g.node("Softmax", g.node("MatMul", g.input("x", ["batch", 8]), g.weight(8, 4)))
    g.output(g.node("MatMul", gate, g.weight(4, 8)), rank=2)
    model = ir.from_proto(g.model())

    report = fuse_for_onnxruntime_cpu(model)

    assert report.outcomes["attention"].found == 0
    assert operators(model) == ["MatMul", "Softmax", "MatMul"]


def test_fusing_twice_changes_nothing_more() -> None:
    model = ir.from_proto(attention_model(SPELLINGS["gemm_between_reshapes"]))
    fuse_for_onnxruntime_cpu(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)

    report = fuse_for_onnxruntime_cpu(model)

    assert report.outcomes["attention"].found == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_a_guarded_row_that_is_masked_in_full_gives_zeros_and_not_a_mean() -> None:
    proto = attention_model(replace(SPELLINGS["sdpa"], merge="constant_hidden"))
    model = ir.from_proto(proto)
    fuse_for_onnxruntime_cpu(model)

    (result,) = run(ir.to_proto(model), feeds_for(proto, SIZES, masked_row=True))

    assert np.array_equal(result[-1], np.zeros_like(result[-1]))
    assert np.abs(result[:-1]).min(axis=-1).max() > 0


NEAR_MISSES = {
    "the softmax is taken over axis 1, not the last": (PLAIN, {"softmax_axis": 1}),
    "the lengths of key and value differ: sequence and other": (
        replace(PLAIN, mask="none"),
        {"value_of_another_sequence": True},
    ),
    "the query `Add_12` is not laid out as (batch, length, heads * size)": (
        PLAIN,
        {"bias_per_head": True},
    ),
    "the mask `second` of (batch, 1, 1, positions) is not known to broadcast to "
    "(batch, 4, sequence, sequence)": (
        PLAIN,
        {"second_mask": ["batch", 1, 1, "positions"]},
    ),
    "the mask is multiplied together with the scores": (PLAIN, {"scaled_after_mask": True}),
    "the attention weights are an output of the graph": (PLAIN, {"weights_are_output": True}),
    "`Mul` stands between the product and the softmax": (
        replace(PLAIN, mask="none"),
        {"scale": np.full((4, 1, 1), 2.0)},
    ),
    "neither input of `Add_20` can be the scores": (PLAIN, {"scale": np.full((4, 1, 1), 2.0)}),
    "the scores are multiplied with zero": (PLAIN, {"scale": np.inf}),
    "masked scores are set to -10000, which adding cannot give": (
        replace(PLAIN, mask="fill"),
        {"fill": -1e4},
    ),
    "masked scores are set to nan, which adding cannot give": (
        replace(PLAIN, mask="fill"),
        {"fill": np.nan},
    ),
    "the mask `Where_15` of (batch, mask_heads, 1, sequence) is not known to broadcast to "
    "(batch, 4, sequence, sequence)": (
        replace(PLAIN, mask="row"),
        {"mask_shape": ["batch", "mask_heads", 1, "sequence"]},
    ),
    "the mask `Where_15` of (batch, 1, 1, positions) is not known to broadcast to "
    "(batch, 4, sequence, sequence)": (
        replace(PLAIN, mask="row"),
        {"mask_shape": ["batch", 1, 1, "positions"]},
    ),
    "a guard against NaN stands behind scores without a mask": (
        replace(PLAIN, mask="none", guard=True),
        {},
    ),
    "a guard against NaN stands behind a mask that differs between heads": (
        replace(PLAIN, mask="per_head", guard=True),
        {},
    ),
    "the graph's output uses the result before its heads are merged": (
        PLAIN,
        {"result_used_unmerged": True},
    ),
    "the query `Add_1` is not laid out as (batch, length, heads * size)": (
        replace(PLAIN, heads=4, size=8, mask="none"),
        {"perm": [1, 0, 2, 3]},
    ),
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_a_near_miss_is_refused_with_its_reason_and_left_as_it_was(reason: str) -> None:
    spelling, changes = NEAR_MISSES[reason]
    model = ir.from_proto(attention_model(spelling, **changes))
    before = operators(model)

    report = fuse_for_onnxruntime_cpu(model)

    assert [item.reason for item in report.outcomes["attention"].refused] == [reason]
    assert report.as_json()["coverage"] == {"fused_attention": 0.0}
    assert operators(model) == before
