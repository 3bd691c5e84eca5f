"""Which nodes of a graph must stay in float32 when the rest is cast to 16 bits, and why.

The limits of float16 (IEEE 754 binary16): largest finite number 65504, smallest positive number
2^-24, eleven bits of precision. bfloat16 is the first half of a float32: it ends where float32 does,
and has eight bits of precision. So nothing overflows in it, and sums and whatever must be exact lose
more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STANDS_FOR_INFINITY: Final = 1e8
"""A scalar this large is no quantity but a stand-in for infinity, such as the fill of an attention
mask (-3.4e38, the lowest float32, in transformers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfType:
    """A type of 16 bits.

    Attributes:
        name: As numpy has it.
        short: As recipes have it; also what names of values and constants end with.
        dtype, array: The element type of ONNX and of numpy.
        bits: Of precision: integers up to `2^bits` are exact.
        largest: The largest finite number.
        vanishes: Half of the smallest positive number: what is not larger rounds to zero.
        infinity: What a stand-in for infinity that is larger than `largest` becomes: half of
            `largest`, so that a score can be added to it without overflow, which would turn a row
            that is masked altogether into NaN.
        overflows: Whether numbers that are usual in float32 are infinite in it.
    """

    name: str
    short: str
    dtype: ir.DataType
    array: np.dtype[np.generic]
    bits: int
    largest: float
    vanishes: float
    infinity: float
    overflows: bool


FLOAT16: Final = HalfType(
    name="float16",
    short="fp16",
    dtype=ir.DataType.FLOAT16,
    array=np.dtype(np.float16),
    bits=11,
    largest=65504.0,
    vanishes=2.0**-25,
    infinity=32752.0,
    overflows=True,
)
BFLOAT16: Final = HalfType(
    name="bfloat16",
    short="bf16",
    dtype=ir.DataType.BFLOAT16,
    array=np.dtype(ml_dtypes.bfloat16),
    bits=8,
    largest=float(
        ml_dtypes.finfo(ml_dtypes.bfloat16).max
    ),  # 3.3895e38; the largest float32 is more
    vanishes=2.0**-134,
    infinity=2.0**127,
    overflows=False,
)
HALF_TYPES: Final = (FLOAT16, BFLOAT16)

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
_LAST: Final = 24
"""The last opset whose operators are looked at."""
_INTEGERS: Final = frozenset({ir.DataType.INT32, ir.DataType.INT64})
MOVES: Final = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
    }
)
"""Operators whose results are elements of what they read."""
_INFINITY_IS_FINE: Final = MOVES | {
    *("Add", "Clip", "ConstantOfShape", "Max", "Min", "Mul", "Pad", "Sub", "Where")
}


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


def nodes_to_keep(graph: ir.Graph, opset: int, kind: HalfType) -> Mapping[ir.Node, Kept]:
    """Decide for every node; those that are not in the result compute in 16 bits.

    Args:
        graph: With the types of all values known and constants lifted to initializers.
        opset: Version of the standard operators.
        kind: Of the 16 bits.

    Raises:
        StageError: for a node of a domain whose operators are not known here.
    """
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        reason = _own_reason(node, opset, kind)
        if reason:
            reasons[node] = reason
    for node in tuple(reasons):
        if node.op_type in _REDUCTIONS:
            reasons |= {
                power: f"feeds the sum of {_label(node)}: {_fault(kind)}"
                for power in _powers_before(node)
                if power not in reasons
            }
    for node, reason in _exact_nodes(graph, kind):
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


def fitted(array: np.ndarray, kind: HalfType) -> np.ndarray:
    """A number that stands for infinity as `HalfType.infinity`; everything else as it is.

    Infinity itself stays: there is one in every type.
    """
    size = float(np.abs(array.reshape(()))) if array.size == 1 else 0.0
    if max(kind.largest, STANDS_FOR_INFINITY) < size < np.inf:
        return np.asarray(np.clip(array, -kind.infinity, kind.infinity))
    return array


def _fault(kind: HalfType) -> str:
    """What 16 bits do to a square that is summed."""
    if kind.overflows:
        return f"its result may exceed {kind.largest:.0f}"
    return f"{kind.name} keeps only {kind.bits} bits of each term"


def _own_reason(node: ir.Node, opset: int, kind: HalfType) -> str:
    """Why the node must stay, judged by itself; empty when it may be cast."""
    if not any(map(is_float, (*node.inputs, *node.outputs))):
        return ""
    if node.op_type in _REDUCTIONS and is_float(node.outputs[0]):
        overflow = f"exceed {kind.largest:.0f} or " if kind.overflows else ""
        return f"sums many elements: the sum may {overflow}lose its last bits"
    if not _allows_half(node, opset, kind):
        later = next(filter(lambda n: _allows_half(node, n, kind), range(opset + 1, _LAST + 1)), 0)
        since = f", but since opset {later}" if later else ""
        return f"{node.op_type} of opset {opset} is not defined for {kind.name}{since}"
    constants = [constant_array(value) for value in node.inputs if value and is_float(value)]
    constants += [
        attribute.as_tensor().numpy()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    reasons = (_constant_reason(node, array, kind) for array in constants if array is not None)
    return next(filter(None, reasons), "")


def _constant_reason(node: ir.Node, array: np.ndarray, kind: HalfType) -> str:
    if array.size != 1 or array.dtype != np.float32:
        return ""
    number = float(array.reshape(()))
    size = abs(number)
    if 0 < size <= kind.vanishes:
        return f"its constant {number:g} is zero in {kind.name}"
    if not kind.largest < size < float("inf"):
        return ""
    if size >= STANDS_FOR_INFINITY and node.op_type in _INFINITY_IS_FINE:
        return ""  # becomes `kind.infinity`
    return f"its constant {number:g} is infinite in {kind.name}"


def _allows_half(node: ir.Node, opset: int, kind: HalfType) -> bool:
    """Whether the operator's definition has the type wherever this node has float32."""
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
            if is_float(value) and f"tensor({kind.name})" not in types:
                return False
    return True


def _exact_nodes(graph: ir.Graph, kind: HalfType) -> Iterator[tuple[ir.Node, str]]:
    """Nodes whose float inputs must be exact, with all that computes these from integers."""
    for node in graph:
        exact = _exact_reason(node, kind)
        if exact:
            for member in (node, *_positions_before(node)):
                yield member, f"{_label(node)} {exact}"


def _exact_reason(node: ir.Node, kind: HalfType) -> str:
    """Why what a node reads must not be rounded; empty when it may be."""
    if not node.inputs or not is_float(node.inputs[0]):
        return ""
    if node.op_type in {"Cos", "Sin"}:
        return f"is of an angle, of which {kind.name} has no fraction beyond {2**kind.bits}"
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
