"""Token tables stored in 8 bits with one scale a row, widened row by row as they are looked up.

Gather(table, ids)  ->  Cast(Gather(table8, ids)) * Gather(scales, ids)
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.quantized_weights import quantize_rows

SMALLEST_EMBEDDING_BYTES: Final = 1 << 16
"""Smaller tables stay float: the nodes that widen a row cost more than they save."""

_FLOAT: Final = ir.DataType.FLOAT


def quantize_embeddings(graph: ir.Graph, editor: GraphEditor) -> tuple[str, ...]:
    """Stores the float tables that are looked up by token in 8 bits.

    Args:
        graph: Edited in place; nodes that nothing reads any longer stay in it.
        editor: Of this graph.

    Returns:
        Names of the lookups.
    """
    lookups = embedding_lookups(graph)
    names = tuple(node_name(node) for node in lookups)
    for node, name in zip(lookups, names, strict=True):
        table, indices = node.inputs
        if table is None or table.const_value is None:
            raise ValueError(f"`{name}` has no table")
        rows = quantize_rows(table.const_value.numpy())
        values = editor.constant(editor.name(f"{table.name}_quantized"), rows.values)
        scales = editor.constant(editor.name(f"{table.name}_scale"), rows.scale)
        row = editor.insert(
            node, "Gather", [values, indices], output=f"{name}_row", dtype=ir.DataType.INT8
        )
        row = editor.insert(
            node, "Cast", [row], output=f"{name}_float", attributes={"to": int(_FLOAT)}
        )
        scale = editor.insert(node, "Gather", [scales, indices], output=f"{name}_scale")
        replace_value(
            node.outputs[0], editor.insert(node, "Mul", [row, scale], output=f"{name}_scaled")
        )
    return names


def embedding_lookups(graph: ir.Graph) -> list[ir.Node]:
    """The lookups whose table is stored in 8 bits when that is asked for."""
    return [node for node in graph if _is_embedding(node)]


def _is_embedding(node: ir.Node) -> bool:
    """Whether a node looks up rows of a constant float matrix by a graph input, such as token ids.

    Tables looked up by computed positions stay float: they are small, and may be the sines and
    cosines of a rotary embedding. So does a table that something else reads as well.
    """
    if not is_standard(node, "Gather") or int_attribute(node, "axis", 0) not in {0, -2}:
        return False
    table, indices = node.inputs
    if table is None or table.const_value is None or table.is_graph_input():
        return False
    is_matrix = table.const_value.dtype == _FLOAT and len(table.const_value.shape) == 2
    is_large = table.const_value.nbytes >= SMALLEST_EMBEDDING_BYTES
    is_own = not table.is_graph_output() and consumers(table) == (node,)
    return is_matrix and is_large and is_own and _is_given(indices)


def _is_given(value: ir.Value | None) -> bool:
    """Whether a value is an input of the graph, perhaps in another shape or integer type."""
    while value is not None and is_standard(
        value.producer(), "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"
    ):
        producer = value.producer()
        value = None if producer is None else input_of(producer, 0)
    return value is not None and value.is_graph_input()
