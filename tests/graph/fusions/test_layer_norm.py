from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.fusions.layer_norm import fuse_skip_layer_norm
from pipeline.graph.fusions.shapes import SymbolicShapes
from tests.graph.fusions.graphs import GraphBuilder, feeds_for, operators, run

if TYPE_CHECKING:
    import onnx

SIZES = {"batch": 2, "sequence": 3, "other": 3}


def residual_model(
    left: list[Any],
    right: list[Any],
    *,
    reuse_sum: bool = False,
    bias: bool = True,
    **attributes: Any,
) -> GraphBuilder:
    g = GraphBuilder()
    total = g.node("Add", g.input("x", left), g.input("skip", right))
    weights = [g.weight(8), *([g.weight(8)] if bias else [])]
    normed = g.node("LayerNormalization", total, *weights, **attributes)
    if reuse_sum:
        normed = g.node("Add", normed, total)
    g.output(normed, rank=max(len(left), len(right)))
    return g


def fuse(proto: onnx.ModelProto) -> tuple[ir.Model, list[str]]:
    model = ir.from_proto(proto)
    outcome = fuse_skip_layer_norm(model.graph, SymbolicShapes(model.graph))
    RemoveUnusedNodesPass()(model)
    return model, [item.reason for item in outcome.refused]


FULL = ["batch", "sequence", 8]


@pytest.mark.parametrize("reuse_sum", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_residual_sum_and_its_norm_fuse_to_the_same_numbers(reuse_sum: bool, bias: bool) -> None:
    proto = residual_model(FULL, FULL, reuse_sum=reuse_sum, bias=bias, epsilon=1e-3).model()

    model, refused = fuse(proto)

    assert refused == []
    assert operators(model)[0] == "SkipLayerNormalization"
    assert "LayerNormalization" not in operators(model)
    feeds = feeds_for(proto, SIZES)
    np.testing.assert_allclose(
        run(ir.to_proto(model), feeds)[0], run(proto, feeds)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("g", "reason"),
    [
        (
            residual_model(FULL, [1, "sequence", 8]),
            "the two summands are not known to have the same shape",
        ),
        (
            residual_model(FULL, ["batch", "other", 8]),
            "the two summands are not known to have the same shape",
        ),
        (
            residual_model(["batch", 2, 3, 8], ["batch", 2, 3, 8]),
            "the summands have 4 axes, not 2 or 3",
        ),
        (
            residual_model(["batch", 1, 8], ["batch", 1, 8], axis=1),
            "the normalisation covers more than the last axis",
        ),
    ],
)
def test_what_the_fused_operator_cannot_do_is_refused(g: GraphBuilder, reason: str) -> None:
    model, refused = fuse(g.model())

    assert refused == [reason]
    assert operators(model) == ["Add", "LayerNormalization"]


def test_a_sum_that_the_graph_returns_is_refused() -> None:
    g = residual_model(FULL, FULL)
    g.output("Add_0")

    _, refused = fuse(g.model())

    assert refused == ["the sum is an output of the graph"]
