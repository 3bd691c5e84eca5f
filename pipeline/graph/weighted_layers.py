"""The layers of a graph that have constant weights, and the tensors they read and write.

Static quantisation needs a range for the activation that each of them reads, and for the result of
convolutions, which ONNX Runtime computes from 8 bits to 8 bits. The graph that is calibrated is not
the one that is quantised: in between, fusions and casts rewrite it. So values are compared by
*class*: all names of the same numbers, connected by operators that only reshape, transpose or
change the width of floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from pipeline.graph.fusions.matching import (
    constant_scalar,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WEIGHTED_OPERATORS: Final = ("MatMul", "Gemm", "Conv")
"""Operators whose second input may be a weight."""

FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_PRESERVING: Final = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose result has the numbers of their first input, in some order (ONNX opset 24)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedLayer:
    """A MatMul, Gemm or Conv.

    Attributes:
        node: The node.
        activation: What it reads besides the weight; None when `reason` says that both are computed
            or the constant stands left.
        weight: Its constant factor; None when both are computed.
        axis: Of the weight, the one along which outputs lie.
        reason: Why it cannot be quantised; empty when it can.
    """

    node: ir.Node
    activation: ir.Value | None
    weight: ir.Value | None
    axis: int
    reason: str

    @property
    def name(self) -> str:
        """The name to report."""
        return node_name(self.node)

    @property
    def result(self) -> ir.Value:
        """What comes out, behind a Relu, or a Clip at zero, that nothing else bypasses."""
        output = self.node.outputs[0]
        reader = only_consumer(output)
        return reader.outputs[0] if reader is not None and _is_rectifier(reader) else output


def _is_rectifier(node: ir.Node) -> bool:
    """Whether 8-bit kernels of ONNX Runtime take a node into the product before it.

    They cut where their integers end, which is at zero when the range is of what comes out. A Clip
    at other numbers would have to end exactly at one of the integers.
    """
    is_clip_at_zero = is_standard(node, "Clip") and constant_scalar(input_of(node, 1)) == 0.0
    return is_standard(node, "Relu") or is_clip_at_zero


def find_weighted_layers(graph: ir.Graph) -> tuple[WeightedLayer, ...]:
    """Every MatMul, Gemm and Conv of a graph, in its order; subgraphs are not looked into.

    Args:
        graph: With constants lifted to initializers.
    """
    return tuple(_layer(node) for node in graph if is_standard(node, *WEIGHTED_OPERATORS))


def _layer(node: ir.Node) -> WeightedLayer:
    left, right = input_of(node, 0), input_of(node, 1)
    if right is None or right.const_value is None:
        is_left = left is not None and left.const_value is not None
        reason = "its constant is the left factor" if is_left else "both factors are computed"
        weight = left if is_left else None
        return WeightedLayer(node=node, activation=None, weight=weight, axis=0, reason=reason)
    axis = 0 if node.op_type == "Conv" or int_attribute(node, "transB", 0) else 1
    reason = _obstacle(node, right)
    return WeightedLayer(node=node, activation=left, weight=right, axis=axis, reason=reason)


def _obstacle(node: ir.Node, weight: ir.Value) -> str:
    """Why a layer with a weight cannot be quantised on any runtime, or nothing."""
    tensor = weight.const_value
    if tensor is None or tensor.dtype not in FLOATS:
        kinds = " or ".join(sorted(kind.name for kind in FLOATS))
        return f"its weight is {'' if tensor is None else tensor.dtype.name}, not {kinds}"
    if node.op_type != "Conv" and len(tensor.shape) != 2:
        return f"its weight has {len(tensor.shape)} axes, not 2"
    if weight.is_graph_input():
        return "its weight can be replaced by the caller"
    source = node.inputs[0]
    if source is not None and source.const_value is not None:
        return "both factors are constant"
    return ""


def gemm_obstacle(node: ir.Node) -> str:
    """Why a node cannot be written as a MatMul and an Add, or nothing; MatMul can."""
    if node.op_type != "Gemm":
        return ""
    factors = [node.attributes.get(name) for name in ("alpha", "beta")]
    scales = any(factor is not None and factor.as_float() != 1.0 for factor in factors)
    is_plain = not scales and not int_attribute(node, "transA", 0)
    return "" if is_plain else "it scales or transposes its input"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededTensor:
    """A tensor whose range is needed.

    Attributes:
        name: The one that a layer reads or writes.
        names: All names of the same numbers, this one first.
        is_inner: Whether it is neither an input nor an output of the graph.
    """

    name: str
    names: tuple[str, ...]
    is_inner: bool


def needed_tensors(
    graph: ir.Graph, operators: tuple[str, ...] = WEIGHTED_OPERATORS
) -> tuple[NeededTensor, ...]:
    """The tensors whose ranges quantising this graph may need, in the order of its layers.

    One for each class of values, whatever number of layers read it.

    Args:
        graph: With constants lifted to initializers.
        operators: Of the layers that are looked at.
    """
    classes = value_classes(graph)
    wanted: dict[frozenset[ir.Value], ir.Value] = {}
    for layer in find_weighted_layers(graph):
        if not layer.reason and layer.node.op_type in operators:
            for value in _activations(layer):
                wanted.setdefault(classes[value], value)
    order = {value: number for number, value in enumerate(_computed(graph))}
    found = []
    for members, value in wanted.items():
        others = sorted(members - {value}, key=order.__getitem__)
        is_inner = not (value.is_graph_input() or value.is_graph_output())
        found.append(
            NeededTensor(
                name=value.name or "",
                names=tuple(each.name or "" for each in (value, *others)),
                is_inner=is_inner,
            )
        )
    return tuple(found)


def _activations(layer: WeightedLayer) -> Iterator[ir.Value]:
    if layer.activation is not None:
        yield layer.activation
    if layer.node.op_type == "Conv":
        yield layer.result


def value_classes(graph: ir.Graph) -> Mapping[ir.Value, frozenset[ir.Value]]:
    """For each computed float value, all values that hold the same numbers, itself among them."""
    parents: dict[ir.Value, ir.Value] = {value: value for value in _computed(graph)}

    def root(value: ir.Value) -> ir.Value:
        while parents[value] is not value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value

    for node in graph:
        if node.domain in {"", "ai.onnx"} and node.op_type in _PRESERVING:
            source, result = node.inputs[0], node.outputs[0]
            if source in parents and source is not None and _keeps_numbers(node):
                parents[root(result)] = root(source)
    members: dict[ir.Value, set[ir.Value]] = {}
    for value in parents:
        members.setdefault(root(value), set()).add(value)
    frozen = {value: frozenset(group) for value, group in members.items()}
    return {value: frozen[root(value)] for value in parents}


def _keeps_numbers(node: ir.Node) -> bool:
    """Not for conversions of integers: those are no activations."""
    if node.op_type != "Cast":
        return True
    types = {value.dtype for value in (node.inputs[0], node.outputs[0]) if value is not None}
    return types <= FLOATS


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and results of nodes, in the order of the graph."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
