from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.fusions.linear import fuse_linear
from pipeline.graph.fusions.shapes import SymbolicShapes
from tests.graph.fusions.graphs import GraphBuilder, feeds_for, operators, run

if TYPE_CHECKING:
    import onnx

SIZES = {"batch": 2, "sequence": 3}


def gemm_model(
    *, rank: int = 3, rows: tuple[int, ...] = (-1, 8), **attributes: Any
) -> GraphBuilder:
    g = GraphBuilder()
    x = g.input("x", ["batch", "sequence", 8][3 - rank :])
    flat = g.node("Reshape", x, g.ints(*rows))
    g.node("Gemm", flat, g.weight(8, 8), g.weight(8), **attributes)
    return g


def finish(g: GraphBuilder, *shape: int, allow_zero: int = 0) -> onnx.ModelProto:
    g.output(g.node("Reshape", "Gemm_1", g.ints(*shape), allowzero=allow_zero), rank=len(shape))
    return g.model()


def fuse(proto: onnx.ModelProto) -> tuple[ir.Model, list[str]]:
    model = ir.from_proto(proto)
    outcome = fuse_linear(model.graph, SymbolicShapes(model.graph))
    RemoveUnusedNodesPass()(model)
    return model, [item.reason for item in outcome.refused]


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_flattened_gemm_becomes_a_product_with_the_same_numbers(transposed: int) -> None:
    g = gemm_model(transB=transposed)
    shape = g.node("Concat", g.shape_of("x", 0, 2), g.ints(2, 4), axis=0)
    g.output(g.node("Reshape", "Gemm_1", shape), rank=4)
    proto = g.model()

    model, refused = fuse(proto)

    assert refused == []
    assert "Gemm" not in operators(model)
    feeds = feeds_for(proto, SIZES)
    for expected, actual in zip(run(proto, feeds), run(ir.to_proto(model), feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (finish(gemm_model(alpha=2.0), -1, 3, 8), "alpha is 2, not 1"),
        (finish(gemm_model(beta=0.5), -1, 3, 8), "beta is 0.5, not 1"),
        (finish(gemm_model(transA=1, rows=(8, 8)), -1, 3, 8), "its first input is transposed"),
        (
            finish(gemm_model(rank=2, rows=(-1, 8)), -1, 3, 8),
            "the tensor before the reshape is not known to have more than two axes",
        ),
        (
            finish(gemm_model(rows=(6, 8)), -1, 3, 8),
            "the reshape before it does more than merge the leading axes",
        ),
        (finish(gemm_model(), 0, 2, 4), "`Reshape_2` copies lengths from the flattened tensor"),
    ],
)
def test_a_gemm_that_is_more_than_a_flattened_product_is_refused(
    proto: onnx.ModelProto, reason: str
) -> None:
    model, refused = fuse(proto)

    assert refused == [reason]
    assert operators(model) == ["Reshape", "Gemm", "Reshape"]


def test_a_gemm_whose_flat_result_is_returned_is_refused() -> None:
    g = gemm_model()
    g.output("Gemm_1", rank=2)

    model, refused = fuse(g.model())

    assert refused == ["its result is used with two axes"]
    assert operators(model) == ["Reshape", "Gemm"]


def test_a_gemm_on_a_true_matrix_is_no_candidate() -> None:
    g = GraphBuilder()
    g.output(g.node("Gemm", g.input("x", ["batch", 8]), g.weight(8, 8), g.weight(8)), rank=2)

    model, refused = fuse(g.model())

    assert refused == []
    assert operators(model) == ["Gemm"]
