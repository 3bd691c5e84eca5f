"""Attention masks that say the same for every row, kept at the size of what they say.

Exporters write a mask of padding as (batch, 1, length, length), though a row of it is the mask of the
tokens, (batch, 1, 1, length): the rows come from a condition on the query's position that always
holds, and from an Expand. ONNX Runtime fuses attention and never makes it; TensorRT does: 17 MB for
32 texts of 512 tokens, an eighth of all activations of MiniLM-L6. So for engines

    Where(Expand(And(rows, mask), shape), a, b)  ->  Where(mask, a, b)

with single numbers a and b, where `rows` is `range(0, n) >= 0` in whatever place of the shape; and the
Expand alone goes where there is no such condition. Conditions: everything that reads the result adds
it to something that has the full shape already, so that the sums are the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.fusions.dims import ONE
from pipeline.graph.fusions.matching import (
    constant_scalar,
    consumers,
    input_of,
    is_standard,
    node_name,
    only_consumer,
)
from pipeline.graph.fusions.shapes import SymbolicShapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.dims import Shape


def shrink_masks(model: ir.Model) -> tuple[str, ...]:
    """Takes the repetition out of every mask that fulfils the conditions, in place.

    Returns:
        Names of the Where nodes whose masks became smaller.
    """
    shapes = SymbolicShapes(model.graph)
    shrunk = []
    for node in list(model.graph):
        condition = _small_condition(node, shapes)
        if condition is None:
            continue
        result = node.outputs[0]
        node.replace_input_with(0, condition)
        # What was known of it is of the full size.
        result.shape = condition.shape
        shrunk.append(node_name(node))
    if shrunk:
        RemoveUnusedNodesPass()(model)
    return tuple(shrunk)


def _small_condition(node: ir.Node, shapes: SymbolicShapes) -> ir.Value | None:
    """What a Where may ask in place of its condition; None when it must stay."""
    if not is_standard(node, "Where") or node.outputs[0].is_graph_output():
        return None
    is_of_numbers = all(_is_number(input_of(node, index), shapes) for index in (1, 2))
    expanded = input_of(node, 0)
    expand = expanded.producer() if expanded is not None else None
    full = shapes.of(expanded)
    if not is_of_numbers or expand is None or not is_standard(expand, "Expand") or full is None:
        return None
    condition = _without_certain(expand.inputs[0], shapes)
    small = shapes.of(condition)
    is_smaller = small is not None and small != full and len(small) == len(full)
    readers = consumers(node.outputs[0])
    is_added = bool(readers) and all(_has_size(reader, node, full, shapes) for reader in readers)
    is_alone = only_consumer(expand.outputs[0]) is node
    return condition if is_smaller and is_added and is_alone else None


def _is_number(value: ir.Value | None, shapes: SymbolicShapes) -> bool:
    """Whether it is one constant number, whatever its rank up to that of the mask."""
    return constant_scalar(value) is not None and shapes.of(value) in {(), (ONE,)}


def _has_size(reader: ir.Node, mask: ir.Node, full: Shape, shapes: SymbolicShapes) -> bool:
    """Whether a node adds the mask to something that is at least as large already."""
    if not is_standard(reader, "Add"):
        return False
    others = [value for value in reader.inputs if value is not mask.outputs[0]]
    shape = shapes.of(others[0]) if len(others) == 1 else None
    if shape is None or len(shape) != len(full):
        return False
    return all(dim in {ONE, size} for dim, size in zip(full, shape, strict=True))


def _without_certain(value: ir.Value | None, shapes: SymbolicShapes) -> ir.Value | None:
    """What is left of a condition without what always holds."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, "And"):
        return value
    left, right = node.inputs
    for certain, other in ((left, right), (right, left)):
        shape = shapes.of(certain)
        if shape is not None and len(shape) == len(shapes.of(other) or ()) and _always(certain):
            return _without_certain(other, shapes)
    return value


def _always(value: ir.Value | None) -> bool:
    """Whether it is `range(start, ...) >= limit`, counting up from the limit or above it."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, "GreaterOrEqual"):
        return False
    limit = constant_scalar(input_of(node, 1))
    counted = input_of(node, 0)
    source = counted.producer() if counted is not None else None
    while source is not None and is_standard(source, "Unsqueeze", "Reshape", "Identity"):
        before = input_of(source, 0)
        source = before.producer() if before is not None else None
    if limit is None or source is None or not is_standard(source, "Range"):
        return False
    start, step = (constant_scalar(input_of(source, index)) for index in (0, 2))
    return start is not None and step is not None and step > 0 and start >= limit
