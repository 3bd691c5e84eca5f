"""Stored numbers that are not those of the checkpoint: stale, transposed, swapped, missing, rounded."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.mutants.catalogue import EVERYWHERE, FUSED, HALF, QUANTIZED, TEXTS, graph_fault
from tests.mutants.parts import linear, norms, position_lookup, token_lookup
from tests.mutants.surgery import Graph, NotHereError

QUANTISERS = {"quantize_dynamic": ("dynamic",), "quantize_static": ("static",)}


def _generator() -> np.random.Generator:
    return np.random.default_rng(20)


@graph_fault(
    "weights",
    "a square matrix is transposed: shapes fit",
    stages={"export": EVERYWHERE, "simplify": HALF, "fuse": FUSED, "cast": HALF},
)
def weight_transposed(graph: Graph) -> None:
    linear(graph, "attention").change(graph, lambda weight: weight.T)


@graph_fault(
    "weights",
    "one matrix is of an earlier training step, 2 % away",
    stages={"export": EVERYWHERE, "simplify": HALF, "fuse": FUSED, "cast": HALF},
)
def weight_stale(graph: Graph) -> None:
    linear(graph, "up", -1).change(
        graph,
        lambda weight: weight * (1 + 0.02 * _generator().standard_normal(weight.shape)),
    )


@graph_fault(
    "weights",
    "one matrix is rounded to bfloat16 on its way",
    stages={"export": EVERYWHERE, "fuse": FUSED},
)
def weight_rounded(graph: Graph) -> None:
    linear(graph, "down").change(
        graph, lambda weight: weight.astype(ml_dtypes.bfloat16).astype(weight.dtype)
    )


@graph_fault(
    "precision",
    "all weights went through bfloat16 before they became float16",
    stages={"cast": HALF},
)
def weights_through_bfloat16(graph: Graph) -> None:
    for name, array in list(graph.initializers()):
        if array.dtype == np.float16 and array.ndim > 1:
            graph.put(name, array.astype(ml_dtypes.bfloat16).astype(np.float16))


@graph_fault(
    "weights",
    "two heads change places where they are put together again",
    stages={"export": EVERYWHERE, "fuse": FUSED, "cast": HALF},
)
def heads_swapped(graph: Graph) -> None:
    def swapped(weight: np.ndarray) -> np.ndarray:
        # 4 heads in the small models, 12 in MiniLM.
        width = len(weight) // (12 if len(weight) == 384 else 4)
        rows = np.arange(len(weight))
        rows[:width], rows[width : 2 * width] = rows[width : 2 * width].copy(), rows[:width].copy()
        return weight[rows]

    linear(graph, "attention", -1).change(graph, swapped)


@graph_fault(
    "weights",
    "one bias is not there",
    stages={"export": EVERYWHERE, "simplify": HALF, "fuse": FUSED, "cast": HALF, **QUANTISERS},
)
def bias_dropped(graph: Graph) -> None:
    graph.change(linear(graph, "attention").bias, np.zeros_like)


@graph_fault(
    "weights",
    "the scale of one normalisation is that of an untrained model",
    stages={"export": QUANTIZED, "cast": HALF, **QUANTISERS},
)
def norm_untrained(graph: Graph) -> None:
    node = norms(graph)[1]
    place = 2 if node.op_type == "SkipLayerNormalization" else 1
    graph.change(node.input[place], np.ones_like)


@graph_fault(
    "rare inputs",
    "tokens that were added late have no embedding: rare tokens",
    stages={"export": QUANTIZED, "cast": HALF},
    models=TEXTS,
)
def last_tokens_missing(graph: Graph) -> None:
    def without_last(table: np.ndarray) -> np.ndarray:
        table[-32:] = 0
        return table

    graph.change(token_lookup(graph).input[0], without_last)


@graph_fault(
    "rare inputs",
    "one token in a hundred has the embedding of its neighbour",
    stages={"export": EVERYWHERE, "fuse": FUSED, **QUANTISERS},
    models=TEXTS,
)
def tokens_mixed(graph: Graph) -> None:
    def mixed(table: np.ndarray) -> np.ndarray:
        rows = _generator().choice(len(table) - 1, size=len(table) // 100, replace=False)
        table[rows] = table[rows + 1]
        return table

    graph.change(_table(graph, token_lookup(graph).input[0]), mixed)


@graph_fault(
    "rare inputs",
    "a single token, a rare one, has the embedding of its neighbour",
    stages={"export": EVERYWHERE, "cast": HALF, **QUANTISERS},
    models=TEXTS,
)
def one_token_mixed(graph: Graph) -> None:
    def mixed(table: np.ndarray) -> np.ndarray:
        table[len(table) * 2 // 3] = table[len(table) * 2 // 3 + 1]
        return table

    graph.change(_table(graph, token_lookup(graph).input[0]), mixed)


@graph_fault(
    "rare inputs",
    "the last positions were cut off the table: the longest texts",
    stages={"export": QUANTIZED, "cast": HALF, **QUANTISERS},
    models=TEXTS,
)
def last_positions_missing(graph: Graph) -> None:
    def without_last(table: np.ndarray) -> np.ndarray:
        table[120:] = 0
        return table

    graph.change(position_lookup(graph).input[0], without_last)


def _table(graph: Graph, name: str) -> str:
    if graph.is_stored(name):
        return name
    maker = graph.maker(name)
    if maker is None or not graph.is_stored(maker.input[0]):
        raise NotHereError(f"`{name}` is not stored")
    return str(maker.input[0])


@graph_fault(
    "weights",
    "the class token is not there",
    stages={"export": QUANTIZED},
    models=("digits",),
)
def class_token_missing(graph: Graph) -> None:
    (name,) = graph.find("cls_token")
    graph.change(name, np.zeros_like)
