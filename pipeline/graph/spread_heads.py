"""Attention whose heads share keys and values, written without sharing inside the operator.

OpenVINO 2026.4 reads ONNX's `Attention` with fewer key/value heads than heads of queries as if there were
as many heads of queries only. The cache keeps its shared heads:

    Attention(q, k, v, mask, past_k, past_v)  ->  present_k = Concat(past_k, k), the same for v
                                                  Attention(q, spread(present_k), spread(present_v), mask)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

_TOKENS: Final = 2
"""Axis of keys and values, (batch, heads, tokens, width)."""


def spread_shared_heads(path: Path, folder: Path) -> Path:
    """Write a graph without shared heads inside `Attention`.

    Args:
        path: The graph.
        folder: Where the new one is written, with its weights.

    Returns:
        The graph itself when nothing in it is of that kind.
    """
    model = ir.load(path)
    found = [node for node in model.graph if _heads(node) is not None]
    for node in found:
        _spread(model.graph, node)
    if not found:
        return path
    ir.save(model, folder / path.name, external_data=f"{path.name}.data")
    return folder / path.name


def _heads(node: ir.Node) -> tuple[int, int, int] | None:
    """Heads of queries, of keys, and the width of one, when they differ and all has four axes."""
    if node.op_type != "Attention" or node.domain not in {"", "ai.onnx"} or len(node.inputs) < 6:
        return None
    queries, past = node.inputs[0], node.inputs[4]
    shapes = [value.shape for value in (queries, past) if value is not None]
    if len(shapes) != 2 or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    first, second = shapes
    assert first is not None
    assert second is not None
    sizes = (first[1], second[1], second[3])
    if not all(isinstance(size, int) for size in sizes) or sizes[0] == sizes[1]:
        return None
    return int(str(sizes[0])), int(str(sizes[1])), int(str(sizes[2]))


def _spread(graph: ir.Graph, node: ir.Node) -> None:
    heads = _heads(node)
    assert heads is not None
    queries, shared, width = heads
    spread = []
    for place in (1, 2):
        past, new = node.inputs[place + 3], node.inputs[place]
        old = node.outputs[place]
        joined = ir.node("Concat", [past, new], attributes={"axis": _TOKENS})
        present = joined.outputs[0]
        name = old.name
        _replace(old, present)
        one = ir.node("Unsqueeze", [present, _constant(graph, f"{name}_axis", [2])])
        sizes = [1, 1, queries // shared, 1, 1]
        many = ir.node("Expand", [one.outputs[0], _constant(graph, f"{name}_sizes", sizes)])
        flat = ir.node(
            "Reshape",
            [many.outputs[0], _constant(graph, f"{name}_flat", [0, queries, -1, width])],
        )
        graph.insert_before(node, [joined, one, many, flat])
        spread.append(flat.outputs[0])
    attention = ir.node(
        "Attention",
        [node.inputs[0], *spread, node.inputs[3]],
        attributes=dict(node.attributes),
    )
    graph.insert_before(node, attention)
    _replace(node.outputs[0], attention.outputs[0])
    graph.remove(node, safe=True)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let a value take the place and the name of another one."""
    name = old.name
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_unused"
    new.name = name


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    tensor = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value
