"""Finds where the result of an attention is used with its heads merged back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.dims import ONE, Dim
from pipeline.graph.fusions.matching import consumers, node_name
from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.fusions.views import Atom, Axis, View, apply_view, axis_size, is_view

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.heads import Heads
    from pipeline.graph.fusions.shapes import SymbolicShapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A value of the graph that is the merged result, as it is or reshaped.

    Attributes:
        value: To be replaced.
        shape: Target of the reshape from (batch, length, heads * size); None when it has that shape.
    """

    value: ir.Value
    shape: tuple[int, ...] | None


def merged_uses(
    product: ir.Node, query: Heads, value: Heads, shapes: SymbolicShapes
) -> tuple[Use, ...]:
    """Every use of the attention's result, in terms of (batch, length, heads * size).

    Args:
        product: The product of weights and value.
        query: Gives batch, heads and length.
        value: Gives the size of a head.
        shapes: Of the graph.

    Raises:
        Refused: when the result is used in any other layout.
    """
    batch, length = _atom((0,), query.batch), _atom((1,), query.length)
    heads, size = _atom((2, 0), query.heads), _atom((2, 1), value.size)
    rank = len(shapes.of(product.outputs[0]) or ())
    view: View
    if rank == 4:
        view = (batch, heads, length, size)
    elif rank == 3:
        view = (batch + heads, length, size)
    else:
        raise Refused("the shape of the result is not known")
    forms: dict[tuple[Dim, ...], tuple[int, ...] | None] = {
        (query.batch * query.length, value.hidden): (-1, value.hidden.factor),
        (query.batch, query.length, query.heads, value.size): (
            0, 0, query.heads.factor, value.size.factor,
        ),
        (query.batch, query.length, value.hidden): None,
    }  # fmt: skip
    return tuple(_collect(product.outputs[0], view, forms, shapes))


def _atom(key: tuple[int, ...], size: Dim) -> Axis:
    return () if size == ONE else (Atom(key, size),)


def _collect(
    value: ir.Value,
    view: View,
    forms: dict[tuple[Dim, ...], tuple[int, ...] | None],
    shapes: SymbolicShapes,
) -> list[Use]:
    keys = [atom.key for axis in view for atom in axis]
    sizes = tuple(axis_size(axis) for axis in view)
    is_merged = keys == sorted(keys) and sizes in forms
    readers = consumers(value)
    only_views = bool(readers) and not value.is_graph_output() and all(map(is_view, readers))
    if is_merged and (len(view) == 3 or not only_views):
        return [Use(value=value, shape=forms[sizes])]
    if not only_views:
        users = [f"`{node_name(reader)}`" for reader in readers if not is_view(reader)]
        user = users[0] if users else "the graph's output"
        raise Refused(f"{user} uses the result before its heads are merged")
    found = []
    for reader in readers:
        after = apply_view(view, reader, shapes)
        if after is None:
            raise Refused(f"`{node_name(reader)}` reshapes the result in an unknown way")
        found.extend(_collect(reader.outputs[0], after, forms, shapes))
    return found
