"""Compares a graph in 16 bits with the float32 graph it was cast from: node by node, number by number.

Nothing is run here: in 16 bits a small fault is smaller than the rounding that is expected, and outputs
do not show it. Casts between float32 and the 16 bits are looked through; everything else must be as it
was, and every stored number the float32 one, rounded once or not at all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.graph.half_rules import FLOAT16, HALF_TYPES, HalfType, fitted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Kind: TypeAlias = Literal["changed_nodes", "changed_constants"]

_FLOATS: Final = frozenset({ir.DataType.FLOAT, *(kind.dtype for kind in HALF_TYPES)})
_MARKS: Final = ("_fp32", *(f"_{kind.short}" for kind in HALF_TYPES))
"""What `pipeline.graph.half` adds to names of values and constants in another type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfDifference:
    """Something that is not as it was.

    Attributes:
        kind: `changed_nodes` or `changed_constants`.
        layer: The node of the float32 graph that it is about; `graph` for none.
        detail: What differs, in words.
    """

    kind: Kind
    layer: str
    detail: str


def audit_half(original: ir.Model, cast: ir.Model) -> tuple[HalfDifference, ...]:
    """Everything that differs besides the type.

    Args:
        original: The float32 graph; constants are lifted out of its nodes in place.
        cast: The graph that was made of it; edited likewise.
    """
    for model in (original, cast):
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.RemoveUnusedNodesPass()(model)
        passes.ShapeInferencePass()(model)  # which casts are between the two types
    return tuple(_differences(original, cast))


def _differences(original: ir.Model, cast: ir.Model) -> Iterator[HalfDifference]:
    for what in ("inputs", "outputs"):
        ours, theirs = ([value.name for value in getattr(m.graph, what)] for m in (original, cast))
        if ours != theirs:
            detail = f"its {what} are {', '.join(f'`{name}`' for name in theirs)}"
            yield HalfDifference(kind="changed_nodes", layer="graph", detail=detail)
    if dict(original.opset_imports) != dict(cast.opset_imports):
        detail = "it is made for another set of operators"
        yield HalfDifference(kind="changed_nodes", layer="graph", detail=detail)
    kinds = _halves(cast) - _halves(original)
    if len(kinds) > 1:
        detail = f"it computes in {' and '.join(sorted(kind.name for kind in kinds))}"
        yield HalfDifference(kind="changed_nodes", layer="graph", detail=detail)
    kind = max(kinds, key=kinds.__getitem__, default=FLOAT16)
    makers = {
        _plain(value.name): node
        for node in cast.graph
        if not _is_float_cast(node)
        for value in node.outputs
        if value.name
    }
    counted = 0
    for node in original.graph:
        if _is_float_cast(node):
            continue
        counted += 1
        yield from _compare_node(node, makers.get(_plain(node.outputs[0].name)), kind)
    extra = sum(not _is_float_cast(node) for node in cast.graph) - counted
    if extra > 0:
        detail = f"{extra} nodes were added that are no casts"
        yield HalfDifference(kind="changed_nodes", layer="graph", detail=detail)
    for value, other in zip(original.graph.outputs, cast.graph.outputs, strict=False):
        if _source_name(value) != _source_name(other):
            detail = f"output `{value.name}` is read from `{_source_name(other)}`"
            yield HalfDifference(kind="changed_nodes", layer="graph", detail=detail)


def _halves(model: ir.Model) -> Counter[HalfType]:
    """How many values a graph computes in each of the 16 bits."""
    made = Counter(value.dtype for node in model.graph for value in node.outputs)
    return Counter({kind: made[kind.dtype] for kind in HALF_TYPES if made[kind.dtype]})


def _compare_node(
    node: ir.Node, found: ir.Node | None, kind: HalfType
) -> Iterator[HalfDifference]:
    layer = node.name or node.op_type

    def changed(detail: str) -> HalfDifference:
        return HalfDifference(kind="changed_nodes", layer=layer, detail=detail)

    if found is None:
        yield changed(f"nothing computes `{node.outputs[0].name}`")
        return
    if (node.op_type, node.domain or "ai.onnx") != (found.op_type, found.domain or "ai.onnx"):
        yield changed(f"{found.op_type} in place of {node.op_type}")
        return
    if _attributes(node, kind) != _attributes(found, kind):
        yield changed("its attributes differ")
    if [_plain(v.name) for v in node.outputs] != [_plain(v.name) for v in found.outputs]:
        yield changed("it writes other values")
    ours, theirs = _inputs(node), _inputs(found)
    if len(ours) != len(theirs):
        yield changed(f"it reads {len(theirs)} values, not {len(ours)}")
        return
    for value, other in zip(ours, theirs, strict=True):
        array, number = _constant(value), _constant(other)
        if array is None or number is None:
            if (array is None) != (number is None) or _source_name(value) != _source_name(other):
                yield changed(f"it reads `{_source_name(other)}`, not `{_source_name(value)}`")
        elif problem := _constant_problem(array, number, kind):
            detail = f"`{value.name if value else ''}` {problem}"
            yield HalfDifference(kind="changed_constants", layer=layer, detail=detail)


def _constant_problem(
    array: NDArray[np.generic], number: NDArray[np.generic], kind: HalfType
) -> str:
    """What is wrong with a stored number; empty when it is the float32 one, rounded at most once."""
    if array.shape != number.shape:
        return f"has shape {list(number.shape)}, not {list(array.shape)}"
    if array.dtype == number.dtype:
        differs = array != number
    elif array.dtype == np.float32 and number.dtype == kind.array:
        differs = fitted(array, kind).astype(kind.array) != number
    else:
        return f"is {number.dtype}, and was {array.dtype}"
    count = int(np.count_nonzero(differs))
    return (
        f"has {count:,} of {array.size:,} numbers that are not the rounded ones" if count else ""
    )


def _plain(name: str | None) -> str:
    """A value's name without what a cast added to it."""
    found = name or ""
    for mark in _MARKS:
        found = found.removesuffix(mark)
    return found


def _is_float_cast(node: ir.Node) -> bool:
    """A Cast from one of the two types to the other."""
    if node.op_type != "Cast" or node.domain not in {"", "ai.onnx"}:
        return False
    source = node.inputs[0]
    target = ir.DataType(node.attributes["to"].as_int())
    return source is not None and source.dtype in _FLOATS and target in _FLOATS


def _behind_casts(value: ir.Value | None) -> ir.Value | None:
    while value is not None:
        maker = value.producer()
        if maker is None or not _is_float_cast(maker):
            break
        value = maker.inputs[0]
    return value


def _source_name(value: ir.Value | None) -> str:
    found = _behind_casts(value)
    return _plain(found.name) if found is not None else ""


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    found = _behind_casts(value)
    if found is None or found.const_value is None:
        return None
    array: NDArray[np.generic] = found.const_value.numpy()
    return array


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _attributes(node: ir.Node, kind: HalfType) -> dict[str, object]:
    """Attributes by name; element types and tensors as the 16 bits would have them."""
    found: dict[str, object] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR:
            array = attribute.as_tensor().numpy()
            half = fitted(array, kind).astype(kind.array) if array.dtype == np.float32 else array
            found[name] = (array.shape, half.dtype.name, half.tobytes())
        elif name in {"to", "dtype", "output_dtype"} and attribute.value in set(map(int, _FLOATS)):
            found[name] = "float"
        else:
            found[name] = attribute.value
    return found
