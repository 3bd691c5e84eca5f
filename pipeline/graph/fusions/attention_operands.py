"""Reads the operands of an attention with its heads apart, as `ai.onnx::Attention` takes them.

`attention.py` proves that heads are split from (batch, length, heads * size), which ONNX Runtime's own
operator needs. Here they only have to be there: (batch, heads, length, size), whatever was done to
them before, such as rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.dims import ONE
from pipeline.graph.fusions.heads import same_length
from pipeline.graph.fusions.matching import input_of, is_standard
from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.fusions.views import scale_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.dims import Shape
    from pipeline.graph.fusions.shapes import SymbolicShapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """Query, key and value, proven to fit each other.

    Attributes:
        query: (batch, heads, length, size).
        key: (batch, heads of the key, length of the key, size) behind `key_order`.
        key_order: Axes of `key` in the order that it is needed in; empty when it has that order.
        value: (batch, heads of the key, length of the key, size of the value).
        scale: Constant factors of query and key.
        scores: (batch, heads, length, length of the key).
        groups: How many heads of the query share one of the key.
    """

    query: ir.Value
    key: ir.Value
    key_order: tuple[int, ...]
    value: ir.Value
    scale: float
    scores: Shape
    groups: int


_SWAPPED = (0, 1, 3, 2)


def read_operands(scores: ir.Node, product: ir.Node, shapes: SymbolicShapes) -> Operands:
    """Reads what the two products of an attention multiply.

    Args:
        scores: The product of query and key.
        product: The product of weights and value.
        shapes: Of the graph.

    Raises:
        Refused: with the first condition that does not hold.
    """
    left, right = _shaped("query", scores, 0, shapes), _shaped("key", scores, 1, shapes)
    last = _shaped("value", product, 1, shapes)
    query_shape, key_shape, value_shape = left[1], right[1], last[1]
    for axis, name in ((0, "batch sizes"), (1, "numbers of heads")):
        same_length(f"the {name} of query and key", query_shape[axis], key_shape[axis])
        same_length(f"the {name} of query and value", query_shape[axis], value_shape[axis])
    same_length("the head sizes of query and key", query_shape[3], key_shape[2])
    same_length("the lengths of key and value", key_shape[3], value_shape[2])
    query, scale = _unscaled(left[0], shapes)
    key, order, factor = _turned(right[0], shapes)
    value, groups = last[0], 1
    shared_key, shared_value = _ungrouped(key, shapes), _ungrouped(value, shapes)
    if not order and shared_key is not None and shared_value is not None:
        (few_keys, groups), (few_values, others) = shared_key, shared_value
        if groups == others:
            key, value = few_keys, few_values
        else:
            groups = 1
    return Operands(
        query=query,
        key=key,
        key_order=order,
        value=value,
        scale=scale * factor,
        scores=(*query_shape[:3], key_shape[3]),
        groups=groups,
    )


def _shaped(
    what: str, node: ir.Node, index: int, shapes: SymbolicShapes
) -> tuple[ir.Value, Shape]:
    value = input_of(node, index)
    shape = shapes.of(value)
    if value is None or shape is None:
        raise Refused(f"the {what}'s shape is not known")
    if len(shape) != 4:
        raise Refused(f"the {what} has {len(shape)} axes, not 4")
    return value, shape


def _unscaled(value: ir.Value, shapes: SymbolicShapes) -> tuple[ir.Value, float]:
    """The value before constant factors, and their product."""
    current, scale = value, 1.0
    while (scaled := scale_of(current.producer())) is not None:
        if shapes.of(scaled[0]) != shapes.of(current):
            break  # a constant of more axes is no mere factor
        current, scale = scaled[0], scale * scaled[1]
    return current, scale


def _turned(value: ir.Value, shapes: SymbolicShapes) -> tuple[ir.Value, tuple[int, ...], float]:
    """The key (batch, heads, size, length) before its last axes were swapped.

    Returns:
        The value, the order of axes that it is still to be brought into, constant factors.
    """
    current, scale = _unscaled(value, shapes)
    node = current.producer()
    source = None if node is None else input_of(node, 0)
    if node is None or source is None or not is_standard(node, "Transpose"):
        return current, _SWAPPED, scale
    attribute = node.attributes.get("perm")
    order = (3, 2, 1, 0) if attribute is None else tuple(attribute.as_ints())
    needed = tuple(order[axis] for axis in _SWAPPED)
    if needed != (0, 1, 2, 3):
        return source, needed, scale
    source, factor = _unscaled(source, shapes)
    return source, (), scale * factor


def _ungrouped(value: ir.Value, shapes: SymbolicShapes) -> tuple[ir.Value, int] | None:
    """What keys or values were before each head was repeated for a group of the query's.

    Reshape(Expand(Unsqueeze(x, 2))): (batch, heads, length, size) with `groups` heads beside each other.
    """
    merged = value.producer()
    expanded = (
        input_of(merged, 0) if merged is not None and is_standard(merged, "Reshape") else None
    )
    repeated = None if expanded is None else expanded.producer()
    if expanded is None or repeated is None or not is_standard(repeated, "Expand"):
        return None
    apart = input_of(repeated, 0)
    split = None if apart is None else apart.producer()
    if split is None or not is_standard(split, "Unsqueeze", "Reshape"):
        return None
    source = input_of(split, 0)
    few, many, all_ = shapes.of(source), shapes.of(expanded), shapes.of(value)
    if source is None or few is None or many is None or all_ is None:
        return None
    if len(few) != 4 or len(many) != 5 or len(all_) != 4:
        return None
    batch, heads, length, size = few
    groups = many[2]
    is_repeat = (
        shapes.of(apart) == (batch, heads, ONE, length, size)
        and many == (batch, heads, groups, length, size)
        and all_ == (batch, heads * groups, length, size)
    )
    if not is_repeat or not groups.is_constant or not heads.is_constant:
        return None
    return source, groups.factor
