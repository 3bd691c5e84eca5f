"""Which inputs of a graph reach its outputs by their *data*, not only by their shape.

An exporter that mixes up two inputs leaves a graph that is valid and has the right names, and in
which one input is used for its shape alone: torch 2.13 does so when the same tensor object is
passed for both. Comparing numbers on that same example cannot see it; this can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

_DATA_FREE_INPUTS: Final[dict[str, frozenset[int]]] = {
    "Shape": frozenset({0}),
    "Size": frozenset({0}),
    "EyeLike": frozenset({0}),
    "RandomNormalLike": frozenset({0}),
    "RandomUniformLike": frozenset({0}),
    "CastLike": frozenset({1}),
}
"""Operator -> inputs of which it reads the shape or the type only (ONNX opset 24)."""


def data_dead_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the inputs from which no data flows to any output, in the order of the graph.

    An operator is taken to pass the data of all its inputs on to all its outputs, but for those
    that only read a shape or a type. So an input that is named here is dead for sure, and one that
    is multiplied by zero is not found. Functions of the model are taken for such operators too.
    """
    outputs = {output.name for output in model.graph.output}
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in initializers]
    return tuple(name for name in inputs if outputs.isdisjoint(_reached(model.graph.node, {name})))


def require_live_inputs(model: onnx.ModelProto) -> None:
    """Refuse a graph in which the data of an input reaches no output.

    Raises:
        ExportError: naming every such input.
    """
    dead = data_dead_inputs(model)
    if dead:
        names = ", ".join(f"`{name}`" for name in dead)
        raise ExportError(
            f"no output depends on the data of input {names}: the graph uses at most its shape",
            hint="the exporter merged or dropped an input; check that every example tensor is an "
            "object of its own and that the mask is padded",
        )


def _reached(nodes: Sequence[onnx.NodeProto], sources: set[str]) -> set[str]:
    """All values that the data of `sources` flows into; nodes are in topological order."""
    reached = set(sources)
    for node in nodes:
        if not reached.isdisjoint(_data_inputs(node)):
            reached.update(name for name in node.output if name)
    return reached


def _data_inputs(node: onnx.NodeProto) -> Iterable[str]:
    """Names of the values whose data a node reads, including those its subgraphs capture."""
    data_free = _DATA_FREE_INPUTS.get(node.op_type, frozenset())
    for index, name in enumerate(node.input):
        if name and index not in data_free:
            yield name
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from _captured(attribute.g)
        for graph in attribute.graphs:
            yield from _captured(graph)


def _captured(graph: onnx.GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield from _data_inputs(node)
    yield from (output.name for output in graph.output)
