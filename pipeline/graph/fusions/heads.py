"""Reads a view as attention heads: which axes of a projection are batch, length, heads and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.fusions.views import Axis, Trace, View, axis_size

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.dims import Dim
    from pipeline.graph.fusions.shapes import SymbolicShapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """A tensor (batch, heads, length, size), or (batch * heads, length, size), as its root has it.

    Attributes:
        trace: Where it comes from.
        batch: Length of the batch axis.
        length: Number of positions.
        heads: Number of heads, a constant.
        size: Numbers per head, a constant.
    """

    trace: Trace
    batch: Dim
    length: Dim
    heads: Dim
    size: Dim

    @property
    def hidden(self) -> Dim:
        """`heads * size`."""
        return self.heads * self.size


def read_heads(what: str, trace: Trace | None, *, is_transposed: bool = False) -> Heads:
    """Reads (batch, heads, length, size) out of a traced operand of an attention product.

    Args:
        what: Names the operand in reasons: query, key or value.
        trace: The operand.
        is_transposed: Whether the last two axes are swapped, as those of the key are.

    Raises:
        Refused: when the operand is no such view of one (batch, length, heads * size) tensor.
    """
    if trace is None:
        raise Refused(f"the {what}'s shape is not known")
    view = trace.view
    if len(view) not in {3, 4}:
        raise Refused(f"the {what} has {len(view)} axes, not 3 or 4")
    length, size = (view[-1], view[-2]) if is_transposed else (view[-2], view[-1])
    if not length or not size:
        raise Refused(f"the {what} has an axis of length one")
    batch, heads = _split_outer(view[:-2], length)
    order = [atom.key for axis in (batch, length, heads, size) for atom in axis]
    if order != sorted(order):
        raise Refused(
            f"the {what} `{trace.root.name}` is not laid out as (batch, length, heads * size)"
        )
    result = Heads(
        trace=trace,
        batch=axis_size(batch),
        length=axis_size(length),
        heads=axis_size(heads),
        size=axis_size(size),
    )
    if not result.heads.is_constant or not result.size.is_constant:
        raise Refused(f"the {what}'s number or size of heads is not constant")
    return result


def _split_outer(outer: View, length: Axis) -> tuple[Axis, Axis]:
    """Divides the outer axes into batch, stored before the length, and heads, stored behind."""
    if len(outer) == 2:
        return outer
    merged = outer[0]
    batch = tuple(atom for atom in merged if atom.key < length[0].key)
    return batch, merged[len(batch) :]


def merged_source(heads: Heads, shapes: SymbolicShapes) -> tuple[ir.Value, bool]:
    """The value from which (batch, length, heads * size) is had most cheaply.

    Returns:
        The value, and whether its two last axes (heads, size) have still to be merged.

    Raises:
        Refused: when no value on the way has its batch and length apart.
    """
    joined = (heads.batch, heads.length, heads.hidden)
    split = (heads.batch, heads.length, heads.heads, heads.size)
    for wanted, has_split_heads in ((joined, False), (split, True)):
        for value in heads.trace.unscaled:
            # A reshape keeps memory order; only a transpose could change it, and the transpose
            # that brings the heads forward is the first one on the way.
            if shapes.of(value) == wanted and not _is_behind_transpose(value, heads.trace):
                return value, has_split_heads
    raise Refused(
        f"no form of `{heads.trace.root.name}` has the axes (batch, length, heads * size)"
    )


def _is_behind_transpose(value: ir.Value, trace: Trace) -> bool:
    current = value
    while current is not trace.root:
        node = current.producer()
        if node is None or node.op_type == "Transpose":
            return True
        source = node.inputs[0]
        if source is None:
            return True
        current = source
    return False


def same_length(name: str, left: Dim, right: Dim) -> None:
    """Requires two lengths to be equal in every run.

    Raises:
        Refused: when that is not proven.
    """
    if left != right:
        raise Refused(f"{name} differ: {left} and {right}")
