"""Follows a tensor through reshapes and transposes as a rearrangement of the axes of its root.

Exporters write "split into heads" in many ways (four axes or three, one transpose or two, with or
without a merged batch axis). All of them are views: the same numbers in the same memory order,
grouped or permuted otherwise. So instead of one pattern per exporter, each axis of a view is a
list of *atoms*, pieces of the root's axes: a reshape regroups atoms (splitting one where it must),
a transpose permutes axes. Two spellings are equal when their atoms are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.dims import ONE, Dim, Shape, product
from pipeline.graph.fusions.matching import constant_scalar, input_of, is_standard

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

_VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of a root axis.

    Attributes:
        key: Sorts atoms into the root's memory order; a piece of an atom extends its key.
        size: How many elements it counts.
    """

    key: tuple[int, ...]
    size: Dim


Axis = tuple[Atom, ...]
View = tuple[Axis, ...]


def root_view(shape: Shape) -> View:
    """The view of a tensor as itself; axes of length one have no atom."""
    return tuple(
        () if size == ONE else (Atom((index,), size),) for index, size in enumerate(shape)
    )


def axis_size(axis: Axis) -> Dim:
    """The length of an axis."""
    return product(atom.size for atom in axis)


def is_view(node: ir.Node | None) -> bool:
    """Whether a node only rearranges the axes of its first input."""
    return is_standard(node, *_VIEWS)


def apply_view(view: View, node: ir.Node, shapes: SymbolicShapes) -> View | None:
    """The view behind a node for which `is_view` holds, or None when it cannot be followed."""
    if node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        order = (
            tuple(reversed(range(len(view)))) if attribute is None else tuple(attribute.as_ints())
        )
        return tuple(view[axis] for axis in order)
    shape = shapes.of(node.outputs[0])
    return None if shape is None else regroup(view, shape)


def regroup(view: View, shape: Shape) -> View | None:
    """A reshape of a view: its atoms in memory order, grouped to the lengths in `shape`."""
    pending = [atom for axis in view for atom in axis]
    axes: list[Axis] = []
    for size in shape:
        axis, left = [], size
        while left != ONE:
            if not pending:
                return None
            atom = pending.pop(0)
            rest = left.divided_by(atom.size)
            if rest is not None:
                axis.append(atom)
                left = rest
                continue
            inner = atom.size.divided_by(left)
            if inner is None:
                return None
            axis.append(Atom((*atom.key, 0), left))
            pending.insert(0, Atom((*atom.key, 1), inner))
            left = ONE
        axes.append(tuple(axis))
    return None if pending else tuple(axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A value as a view of its root, times a number.

    Attributes:
        root: The nearest value upstream that is not a view of another.
        view: The value's axes in atoms of the root's.
        scale: The product of the constants it is multiplied with on the way.
        unscaled: The values from the root on before the first multiplication, with their views.
            Their atoms may be coarser than those of `view`.
    """

    root: ir.Value
    view: View
    scale: float
    unscaled: tuple[ir.Value, ...]


def scale_of(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """The tensor and the factor of a multiplication or division by a constant number."""
    if node is None or not is_standard(node, "Mul", "Div"):
        return None
    left, right = node.inputs
    factor = constant_scalar(right)
    if left is not None and factor is not None:
        if node.op_type == "Mul":
            return left, factor
        return None if factor == 0.0 else (left, 1.0 / factor)
    factor = constant_scalar(left)
    if right is not None and factor is not None and node.op_type == "Mul":
        return right, factor
    return None


def trace(value: ir.Value, shapes: SymbolicShapes) -> Trace | None:
    """Follow `value` upstream through views and constant factors; None when a shape is unknown."""
    steps, root, scale = _upstream(value, shapes)
    shape = shapes.of(root)
    view = None if shape is None else root_view(shape)
    unscaled, is_scaled = [root], False
    for node in steps:
        if view is None:
            return None
        if is_view(node):
            view = apply_view(view, node, shapes)
        else:
            is_scaled = True
        if not is_scaled:
            unscaled.append(node.outputs[0])
    if view is None:
        return None
    return Trace(root=root, view=view, scale=scale, unscaled=tuple(unscaled))


def _upstream(value: ir.Value, shapes: SymbolicShapes) -> tuple[list[ir.Node], ir.Value, float]:
    """The views and factors above `value` from the root on, the root, and the product of factors."""
    steps: list[ir.Node] = []
    current, scale = value, 1.0
    while (node := current.producer()) is not None:
        scaled = scale_of(node)
        source = input_of(node, 0) if is_view(node) else None
        # A constant of shape (1, 1, 1, 1) may also add axes; that is no mere factor.
        if scaled is not None and shapes.of(scaled[0]) == shapes.of(current):
            source = scaled[0]
            scale *= scaled[1]
        if source is None:
            break
        steps.append(node)
        current = source
    return steps[::-1], current, scale
