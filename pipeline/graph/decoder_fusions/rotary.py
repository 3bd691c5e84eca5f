"""Rotation of heads by the positions of their tokens -> `RotaryEmbedding` of ONNX opset 23.

    x * cos + Concat(-x[half:], x[:half]) * sin,  x (batch, heads, length, size)
    Concat(that of x[:rotated], x[rotated:]),     where only the first numbers of a head are rotated

Conditions: x is split in the middle of its last axis; cos and sin are (batch, 1, length, size) with
the second half of the last axis equal to the first, which is proven by how they are made (one tensor put
behind itself, then the same done to each number). So the operator gets one half of them, computed
from `position_ids` as before: any positions, and any scaling of them, stay what they were.

Source: `RotaryEmbedding` of ONNX opset 23, onnx 1.23, without `position_ids` and not interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.dims import ONE
from pipeline.graph.fusions.matching import (
    GraphEditor,
    constant_scalar,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.opsets import raise_opset

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "rotary"
OPSET = 23
"""The first with `RotaryEmbedding`."""

_ELEMENTWISE = ("Cos", "Sin", "Cast", "Identity", "Neg")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rotation:
    """What is rotated, by what, and the sum that is replaced."""

    source: ir.Value
    cos: ir.Value
    sin: ir.Value
    size: int
    total: ir.Node


def fuse_rotary(model: ir.Model, shapes: SymbolicShapes) -> Outcome:
    """Fuses every rotation of the graph; see the module.

    Raises:
        StageError: when an operator of the graph would mean something else in opset 23.
    """
    outcome = Outcome()
    graph = model.graph
    writer = _Writer(graph, shapes)
    for turned in [node for node in graph if _is_turned(node)]:
        try:
            found = _read(turned, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(turned), reason=str(refusal)))
            continue
        raise_opset(model, OPSET)
        writer.write(found)
        outcome.fired += 1
    return outcome


def _is_turned(node: ir.Node) -> bool:
    """Whether a node puts the negative of something before something else."""
    if not is_standard(node, "Concat") or len(node.inputs) != 2:
        return False
    first = node.inputs[0]
    return first is not None and is_standard(first.producer(), "Neg")


def _read(turned: ir.Node, shapes: SymbolicShapes) -> _Rotation:
    shape = shapes.of(turned.outputs[0])
    if shape is None or len(shape) != 4 or not shape[3].is_constant:
        raise Refused("the halves are no heads of four axes")
    size = shape[3].factor
    if int_attribute(turned, "axis", 0) not in {-1, 3}:
        raise Refused("the halves are not put together along the last axis")
    negative, first = (_producer(value) for value in turned.inputs)
    second = _producer(input_of(negative, 0))
    source = input_of(first, 0)
    if source is None or input_of(second, 0) is not source or shapes.of(source) != shape:
        raise Refused("the halves are not of the same tensor")
    for half, (start, end) in ((first, (0, size // 2)), (second, (size // 2, size))):
        if _taken(half, size, shapes) != (start, end):
            raise Refused("the tensor is not split in the middle")
    by_sin = _only_mul(turned.outputs[0])
    total = only_consumer(by_sin.outputs[0])
    if total is None or not is_standard(total, "Add"):
        raise Refused("nothing is added to the turned halves")
    other = next((side for side in total.inputs if side is not by_sin.outputs[0]), None)
    by_cos = _producer(other)
    if not is_standard(by_cos, "Mul") or source not in by_cos.inputs:
        raise Refused("what is added to the turned halves is no multiple of the tensor")
    if only_consumer(by_cos.outputs[0]) is not total:
        raise Refused("the multiple of the tensor is used elsewhere")
    sin = _other(by_sin, turned.outputs[0])
    cos = _other(by_cos, source)
    return _Rotation(
        source=source,
        cos=_angles(cos, (shape, size), shapes),
        sin=_angles(sin, (shape, size), shapes),
        size=size,
        total=total,
    )


def _producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    if node is None:
        raise Refused("the halves come from the graph's inputs")
    return node


def _only_mul(value: ir.Value) -> ir.Node:
    reader = only_consumer(value)
    if reader is None or not is_standard(reader, "Mul"):
        raise Refused("the turned halves are not multiplied, or used elsewhere")
    return reader


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    found = next((side for side in node.inputs if side is not value), None)
    if found is None:
        raise Refused(f"`{node_name(node)}` multiplies a tensor with itself")
    return found


def _taken(node: ir.Node, size: int, shapes: SymbolicShapes) -> tuple[int, int] | None:
    """From where to where a node slices the last of four axes of a length."""
    if not is_standard(node, "Slice"):
        return None
    starts, ends, axes, steps = (shapes.content(input_of(node, index)) for index in range(1, 5))
    if not starts or not ends or not axes or len(axes) != 1 or axes[0] is None:
        return None
    if axes[0].factor not in {-1, 3} or (steps is not None and steps != (ONE,)):
        return None
    start, end = starts[0], ends[0]
    if start is None or end is None or not start.is_constant or not end.is_constant:
        return None
    return slice(start.factor, end.factor).indices(size)[:2]


def _angles(
    value: ir.Value, of: tuple[tuple[object, ...], int], shapes: SymbolicShapes
) -> ir.Value:
    """Cosines or sines (batch, length, size) whose halves are equal, of (batch, 1, length, size)."""
    shape, size = of
    node = _producer(value)
    source = input_of(node, 0)
    found = shapes.of(source)
    if not is_standard(node, "Unsqueeze") or source is None or found is None or len(found) != 3:
        raise Refused(f"`{value.name}` is not (batch, 1, length, size)")
    if shapes.of(value) != (found[0], ONE, *found[1:]):
        raise Refused(f"`{value.name}` differs between heads")
    if (found[0], found[1], found[2].factor) != (shape[0], shape[2], size):
        raise Refused(f"`{value.name}` does not have batch and length of the tensor")
    if not _has_equal_halves(source):
        raise Refused(f"the halves of `{source.name}` are not known to be equal")
    return source


def _has_equal_halves(value: ir.Value) -> bool:
    """Whether the last axis is one tensor twice, by how it is made."""
    node = value.producer()
    while node is not None:
        if is_standard(node, "Concat"):
            is_last = int_attribute(node, "axis", 0) in {-1, 2}
            return is_last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        if is_standard(node, "Mul"):
            numbers = [side for side in node.inputs if constant_scalar(side) is not None]
            others = [side for side in node.inputs if constant_scalar(side) is None]
            if len(numbers) != 1 or len(others) != 1 or others[0] is None:
                return False
            node = others[0].producer()
        elif is_standard(node, *_ELEMENTWISE):
            source = input_of(node, 0)
            node = None if source is None else source.producer()
        else:
            return False
    return False


class _Writer:
    """Puts the operator in place of what was proven; halves of angles are taken once."""

    def __init__(self, graph: ir.Graph, shapes: SymbolicShapes) -> None:
        self._graph = graph
        self._shapes = shapes
        self._editor = GraphEditor(graph)
        self._halves: dict[ir.Value, ir.Value] = {}

    def write(self, found: _Rotation) -> None:
        cos, sin = (self._half(angles, found.size // 2) for angles in (found.cos, found.sin))
        whole = self._of_a_part(found)
        replaced = found.total if whole is None else whole[0]
        source = found.source if whole is None else whole[1]
        result = self._editor.insert(
            replaced,
            "RotaryEmbedding",
            [source, cos, sin],
            output=f"{replaced.outputs[0].name}_rotated",
            attributes={} if whole is None else {"rotary_embedding_dim": found.size},
        )
        result.shape = replaced.outputs[0].shape
        replace_value(replaced.outputs[0], result)

    def _half(self, angles: ir.Value, length: int) -> ir.Value:
        if angles not in self._halves:
            node = angles.producer()
            assert node is not None
            integers = self._editor.integers
            half = self._editor.insert(
                node,
                "Slice",
                [angles, integers((0,)), integers((length,)), integers((2,)), integers((1,))],
                output=f"{angles.name}_half",
            )
            made = half.producer()
            assert made is not None
            self._graph.remove(made)
            self._graph.insert_after(node, made)
            self._halves[angles] = half
        return self._halves[angles]

    def _of_a_part(self, found: _Rotation) -> tuple[ir.Node, ir.Value] | None:
        """The node that puts the rest of a head behind what is rotated of it, and the head."""
        sliced, reader = found.source.producer(), only_consumer(found.total.outputs[0])
        if sliced is None or reader is None or not is_standard(reader, "Concat"):
            return None
        if len(reader.inputs) != 2 or int_attribute(reader, "axis", 0) not in {-1, 3}:
            return None
        head = input_of(sliced, 0)
        shape = self._shapes.of(head)
        if head is None or shape is None or len(shape) != 4 or not shape[3].is_constant:
            return None
        size = shape[3].factor
        first, rest = reader.inputs
        passed = None if rest is None else rest.producer()
        if first is not found.total.outputs[0] or passed is None:
            return None
        if input_of(passed, 0) is not head:
            return None
        is_split = _taken(sliced, size, self._shapes) == (0, found.size) and _taken(
            passed, size, self._shapes
        ) == (found.size, size)
        return (reader, head) if is_split else None
