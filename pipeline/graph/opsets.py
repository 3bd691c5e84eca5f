"""Raises the opset of a graph where every operator in it means the same in the new one.

Nothing is rewritten: `onnx.version_converter` would, but it needs the whole model in one protobuf and
loses the order and names of nodes. An operator may be read by its newer definition when that one only
adds types, optional inputs and attributes whose default is the old behaviour. That can be seen from
the definitions, but for the operators of `CHANGED`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx

from pipeline.errors import StageError
from pipeline.graph.fusions.matching import node_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

CHANGED: Final[dict[str, int]] = {
    "GroupNormalization": 21,
    "AveragePool": 19,
    "Resize": 19,
}
"""Operator -> the opset whose definition computes something else though it looks alike: scales of
channels in place of groups; how a window beyond the edge counts; how sizes are rounded.
Source: onnx/docs/Changelog.md, onnx 1.23."""

_FIRST_IR_VERSION: Final = {21: 10, 22: 10, 23: 11, 24: 12}
"""Opset -> the IR version it was released with. Source: onnx/docs/Versioning.md."""


def raise_opset(model: ir.Model, version: int) -> None:
    """Declare a higher version of the standard operators; a higher one is left alone.

    Raises:
        StageError: for operators that would mean something else, all of them.
    """
    current = model.opset_imports.get("")
    if current is None or current >= version:
        return
    obstacles = sorted(set(_obstacles(model.graph, current, version)))
    if obstacles:
        raise StageError(
            f"the graph has opset {current} and needs {version}, where operators differ: "
            + ", ".join(obstacles),
            hint=f"set `export.opset` to {version} or more",
        )
    model.opset_imports[""] = version
    least = _FIRST_IR_VERSION.get(version, 10)
    model.ir_version = max(model.ir_version or least, least)


def _obstacles(graph: ir.Graph, current: int, version: int) -> Iterator[str]:
    for node in graph.all_nodes():
        if node.domain not in {"", "ai.onnx"}:
            continue
        changed = CHANGED.get(node.op_type)
        is_changed = changed is not None and current < changed <= version
        if is_changed or not means_the_same(node.op_type, current, version):
            yield f"{node.op_type} (`{node_name(node)}`)"


def means_the_same(operator: str, current: int, version: int) -> bool:
    """Whether the newer definition of a standard operator takes all that the older one takes."""
    try:
        old = onnx.defs.get_schema(operator, current, "")
        new = onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    return not new.deprecated and _takes_inputs(old, new) and _takes_attributes(old, new)


def _takes_inputs(old: Any, new: Any) -> bool:
    """The same inputs and outputs in the same places; more inputs only when they are optional."""
    if new.min_input > old.min_input or new.max_input < old.max_input:
        return False
    if (new.min_output, new.max_output) != (old.min_output, old.max_output):
        return False
    types = {each.type_param_str: set(each.allowed_type_strs) for each in new.type_constraints}
    before = {each.type_param_str: set(each.allowed_type_strs) for each in old.type_constraints}
    for ours, theirs in zip(
        (*old.inputs, *old.outputs), (*new.inputs[: len(old.inputs)], *new.outputs), strict=True
    ):
        wanted = before.get(ours.type_str, {ours.type_str})
        if not wanted <= types.get(theirs.type_str, {theirs.type_str}):
            return False
    return True


def _takes_attributes(old: Any, new: Any) -> bool:
    """The same attributes with the same defaults, and no new one that must be given."""
    for name, attribute in old.attributes.items():
        other = new.attributes.get(name)
        if other is None or other.type != attribute.type:
            return False
        if other.default_value.SerializeToString() != attribute.default_value.SerializeToString():
            return False
    return not any(
        attribute.required and name not in old.attributes
        for name, attribute in new.attributes.items()
    )
