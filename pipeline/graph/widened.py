"""A graph in float16 with all of its arithmetic in float32: what it would compute without an end.

On a CPU, ONNX Runtime 1.31 computes most float16 nodes in float32, and rounds no value that lies
between two of them: one beyond 65504 need not show. In the widened graph it can be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.graph.half_rules import FLOAT16, MOVES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that name an element type (ONNX opset 24)."""

_BOUNDED: Final = frozenset({"Greater", "Less", "Sigmoid", "Softmax", "Tanh"})
"""Operators that make ordinary numbers of infinity."""

STAND_IN: Final = 1e30
"""What a scalar that stands for infinity, such as the fill of a mask, becomes: no quantity is so
large. In float16 it is at least half of the largest number, as `pipeline.graph.half` makes it."""
QUANTITY: Final = 1e20
"""What is larger comes from a stand-in."""

PREFIX: Final = "largest_of_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A float16 value of the graph that is watched.

    Attributes:
        value: Its name.
        node: The node that makes it.
        op_type: That node's operator.
        output: The output of the widened graph that says its largest magnitude, float32 scalar.
    """

    value: str
    node: str
    op_type: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Widening:
    """What there was to watch.

    Attributes:
        watched: In the order of the graph.
        untyped: How many values have a type that is not known, and are not watched.
        infinite_weights: Names of stored tensors, of more than one element, that hold infinity.
        stand_ins: Names of scalars that stand for infinity, and of nodes that fill a tensor with one.
    """

    watched: tuple[Watched, ...]
    untyped: int
    infinite_weights: tuple[str, ...]
    stand_ins: tuple[str, ...]


def widen(model: ir.Model) -> Widening:
    """Make all float16 of a model float32, in place, and let it say how large values get.

    Every value that a node of the main graph makes in float16 gets an output with its largest
    magnitude. These are computed in the graph, so that they take no memory however many there are.
    The model's own outputs are dropped.
    """
    graph = model.graph
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    if any(value.dtype is None for node in graph for value in node.outputs):
        passes.ShapeInferencePass()(model)
    stand_ins, infinite = _special_weights(graph)
    fills = _fills(graph)
    masked = _downstream(graph, (*stand_ins, *(node.outputs[0] for node in fills)))
    made = [(node, value) for node in graph for value in node.outputs if value.name]
    untyped = sum(value.dtype is None for _, value in made)
    watched = [
        (node, value)
        for node, value in made
        if value.dtype == ir.DataType.FLOAT16 and node.op_type not in MOVES
    ]
    for node in fills:
        _widen_fill(node)
    _widen_all(model, stand_ins)
    graph.outputs.clear()
    bounds = None
    if stand_ins or fills:
        quantity = _constant(graph, "largest_quantity", QUANTITY)
        bounds = quantity, _constant(graph, "nothing", 0.0)
    return Widening(
        watched=tuple(
            _watch(graph, node, value, bounds if value in masked else None)
            for node, value in watched
        ),
        untyped=untyped,
        infinite_weights=infinite,
        stand_ins=tuple(
            name or "" for name in (*(v.name for v in stand_ins), *(n.name for n in fills))
        ),
    )


def _special_weights(graph: ir.Graph) -> tuple[tuple[ir.Value, ...], tuple[str, ...]]:
    """Scalars that stand for infinity, and names of other weights that hold it."""
    stand_ins, infinite = [], []
    for value in _half_initializers(graph):
        array = _array_of(value)
        if array.size == 1 and abs(array.reshape(())) >= FLOAT16.infinity:
            stand_ins.append(value)
        elif np.isinf(array).any():
            infinite.append(value.name or "")
    return tuple(stand_ins), tuple(infinite)


def _fills(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that make a tensor of one number that stands for infinity."""
    return [
        node
        for node in graph
        if node.op_type == "ConstantOfShape"
        and node.outputs[0].dtype == ir.DataType.FLOAT16
        and abs(float(node.attributes["value"].as_tensor().numpy().reshape(())))
        >= FLOAT16.infinity
    ]


def _widen_fill(node: ir.Node) -> None:
    number = node.attributes["value"].as_tensor().numpy().astype(np.float32)
    wide = np.copysign(np.full_like(number, STAND_IN), number)
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))


def _widen_all(model: ir.Model, stand_ins: Sequence[ir.Value]) -> None:
    """Leave nothing of float16, in subgraphs and functions neither."""
    for value in _half_initializers(model.graph):
        array = _array_of(value)
        if value in stand_ins:
            array = np.copysign(np.full_like(array, STAND_IN), array)
        value.const_value = ir.tensor(array, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        for node in ir.traversal.RecursiveGraphIterator(part):
            _widen_node(node)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.inputs:
            _widen_value(value)


def _half_initializers(graph: ir.Graph) -> Iterator[ir.Value]:
    return (
        value
        for value in graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None
    )


def _array_of(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise ValueError(f"{value.name} is computed")
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def _downstream(graph: ir.Graph, sources: Sequence[ir.Value]) -> frozenset[ir.Value]:
    """All values in which a stand-in may be, up to where it became a zero or a one."""
    found = set(sources)
    for node in graph:
        if node.op_type not in _BOUNDED and not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return frozenset(found)


def _widen_node(node: ir.Node) -> None:
    for name, attribute in tuple(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.value == int(ir.DataType.FLOAT16):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == ir.DataType.FLOAT16:
                wide = tensor.numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
    for value in node.outputs:
        _widen_value(value)


def _widen_value(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT16:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(np.array(number, dtype=np.float32), name=name)
    graph.register_initializer(value)
    return value


def _watch(
    graph: ir.Graph,
    node: ir.Node,
    value: ir.Value,
    bounds: tuple[ir.Value, ir.Value] | None,
) -> Watched:
    """Add an output with the largest magnitude of a value; with `bounds`, of its quantities only."""
    sizes = ir.node("Abs", [value])
    added = [sizes]
    last = sizes.outputs[0]
    if bounds is not None:
        quantity, nothing = bounds
        is_quantity = ir.node("Less", [last, quantity])
        kept = ir.node("Where", [is_quantity.outputs[0], last, nothing])
        added += [is_quantity, kept]
        last = kept.outputs[0]
    largest = ir.node("ReduceMax", [last], {"keepdims": 0})
    added.append(largest)
    output = largest.outputs[0]
    output.name = f"{PREFIX}{value.name}"
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.insert_after(node, added)
    graph.outputs.append(output)
    return Watched(
        value=value.name or "",
        node=node.name or value.name or "",
        op_type=node.op_type,
        output=output.name,
    )
