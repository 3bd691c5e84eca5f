"""Which nodes of a graph must stay in float32 when the rest is cast to float16, and why.

The limits of float16 (IEEE 754 binary16): largest finite number 65504, smallest positive number
2^-24, eleven bits of precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
import onnx_ir as ir

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

FLOAT16_MAX: Final = 65504.0
FLOAT16_VANISHES: Final = 2.0**-25
"""Half of the smallest positive float16: what is not larger rounds to zero."""

STANDS_FOR_INFINITY: Final = 1e8
"""A scalar this large is no quantity but a stand-in for infinity, such as the fill of an attention
mask (-3.4e38, the lowest float32, in transformers)."""

INFINITY_IN_FLOAT16: Final = 32752.0
"""What such a stand-in becomes: half of the largest float16, so that a score can be added to it
without overflow, which would turn a row that is masked altogether into NaN."""

_REDUCTIONS: Final = frozenset(
    {
        "CumSum",
        "GlobalAveragePool",
        "LpNormalization",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    }
)
_POWERS: Final = frozenset({"Pow", "Exp", "Mul"})
_ELEMENTWISE: Final = frozenset(
    {
        *("Abs", "Add", "Clip", "Div", "Expand", "Log", "Max", "Min", "Mul", "Neg", "Pow"),
        *("Reciprocal", "Reshape", "Sqrt", "Squeeze", "Sub", "Unsqueeze"),
    }
)
_LOOKUPS: Final = frozenset({"Gather", "GatherElements", "GatherND"})
_INTEGERS: Final = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_INFINITY_IS_FINE: Final = frozenset({"Add", "Clip", "Max", "Min", "Mul", "Pad", "Sub", "Where"})


@dataclass(frozen=True, slots=True)
class Kept:
    """A node that stays in float32.

    Attributes:
        node: Its name.
        op_type: Its operator.
        reason: One sentence.
    """

    node: str
    op_type: str
    reason: str


def nodes_to_keep(graph: ir.Graph, opset: int) -> Mapping[ir.Node, Kept]:
    """Decide for every node; those that are not in the result compute in float16.

    Args:
        graph: With the types of all values known and constants lifted to initializers.
        opset: Version of the standard operators.

    Raises:
        StageError: for a node of a domain whose operators are not known here.
    """
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        reason = _own_reason(node, opset)
        if reason:
            reasons[node] = reason
    for node in tuple(reasons):
        if node.op_type in _REDUCTIONS:
            reasons |= {
                power: f"feeds the sum of {_label(node)}: its result may exceed {FLOAT16_MAX:.0f}"
                for power in _powers_before(node)
                if power not in reasons
            }
    for node, reason in _exact_nodes(graph):
        reasons.setdefault(node, reason)
    for node in graph:  # in topological order, so one pass is enough
        if node not in reasons and _is_tail(node, reasons):
            reasons[node] = "only continues what is computed in float32, element by element"
    for node in reversed(graph):
        if node not in reasons and _feeds_only(node, reasons):
            reasons[node] = "is read in float32 only"
    return {
        node: Kept(node=_label(node), op_type=node.op_type, reason=reason)
        for node, reason in reasons.items()
    }


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def constant_array(value: ir.Value) -> np.ndarray | None:
    """The content of an initializer; None for a computed value."""
    return None if value.const_value is None else value.const_value.numpy()


def _own_reason(node: ir.Node, opset: int) -> str:
    """Why the node must stay, judged by itself; empty when it may be cast."""
    if not any(map(is_float, (*node.inputs, *node.outputs))):
        return ""
    if node.op_type in _REDUCTIONS and is_float(node.outputs[0]):
        return f"sums many elements: the sum may exceed {FLOAT16_MAX:.0f} or lose its last bits"
    if not _allows_half(node, opset):
        return f"{node.op_type} of opset {opset} is not defined for float16"
    for value in node.inputs:
        reason = _constant_reason(node, value) if value is not None else ""
        if reason:
            return reason
    return ""


def _constant_reason(node: ir.Node, value: ir.Value) -> str:
    array = constant_array(value) if is_float(value) else None
    if array is None or array.size != 1:
        return ""
    number = float(array.reshape(()))
    size = abs(number)
    if 0 < size <= FLOAT16_VANISHES:
        return f"its constant {number:g} is zero in float16"
    if not FLOAT16_MAX < size < float("inf"):
        return ""
    if size >= STANDS_FOR_INFINITY and node.op_type in _INFINITY_IS_FINE:
        return ""  # becomes INFINITY_IN_FLOAT16
    return f"its constant {number:g} is infinite in float16"


def _allows_half(node: ir.Node, opset: int) -> bool:
    """Whether the operator's definition has float16 wherever this node has float32."""
    if node.domain not in {"", "ai.onnx"}:
        raise StageError(
            f"node `{_label(node)}` is {node.domain}::{node.op_type}, whose types are not known",
            hint="cast before operators of one runtime are fused in",
        )
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs
        for constraint in schema.type_constraints
    }
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
            types = allowed.get(formal.type_str, [formal.type_str])
            if is_float(value) and "tensor(float16)" not in types:
                return False
    return True


def _exact_nodes(graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
    """Nodes whose float inputs must be exact, with all that computes these from integers."""
    for node in graph:
        exact = _exact_reason(node)
        if exact:
            for member in (node, *_positions_before(node)):
                yield member, f"{_label(node)} {exact}"


def _exact_reason(node: ir.Node) -> str:
    """Why what a node reads must not be rounded; empty when it may be."""
    if not node.inputs or not is_float(node.inputs[0]):
        return ""
    if node.op_type in {"Cos", "Sin"}:
        return "is of an angle, of which float16 has no fraction beyond 2048"
    if node.op_type == "Cast" and node.outputs[0].dtype in _INTEGERS:
        return "makes integers, and a rounded bit makes another one, such as another bucket"
    return ""


def _positions_before(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes that compute what a node reads, if that is computed from integers alone.

    Positions, distances and their logarithms are; what has weights or pixels in it is not, and is
    rounded anyway.
    """
    found: dict[ir.Node, None] = {}
    frontier = [value for value in node.inputs if is_float(value)]
    while frontier:
        value = frontier.pop()
        if value is None or value.const_value is not None:
            continue
        producer = value.producer()
        if producer is None or (producer.op_type in _LOOKUPS and is_float(producer.inputs[0])):
            return ()
        if producer not in found:
            found[producer] = None
            frontier += [source for source in producer.inputs if is_float(source)]
    return tuple(found)


def _powers_before(node: ir.Node) -> Iterator[ir.Node]:
    """The square, or product, that a reduction sums."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if producer is not None and producer.op_type in _POWERS:
        yield producer


def _is_tail(node: ir.Node, kept: Mapping[ir.Node, str]) -> bool:
    if node.op_type not in _ELEMENTWISE:
        return False
    producers = [
        value.producer() for value in node.inputs if value is not None and is_float(value)
    ]
    computed = [producer for producer in producers if producer is not None]
    return bool(computed) and all(producer in kept for producer in computed)


def _feeds_only(node: ir.Node, kept: Mapping[ir.Node, str]) -> bool:
    """Whether a conversion to float32 is read by nodes in float32 only."""
    if node.op_type != "Cast" or not is_float(node.outputs[0]) or is_float(node.inputs[0]):
        return False
    consumers = node.outputs[0].consumers()
    return bool(consumers) and all(consumer in kept for consumer in consumers)


def _label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type
