"""A freshly translated graph made clean: canonical axis names, no leftovers of the exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.errors import ExportError
from pipeline.tasks import PAST_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.tasks import TensorSpec

PRODUCER: Final = "convert"


def tidy_model(
    model: ir.Model, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Clean a translated graph in place.

    Names the axes, removes nodes and weights that no output needs, and strips metadata: the
    exporter records stack traces, whose paths differ from machine to machine.

    Args:
        model: The graph, its inputs and outputs named and in order.
        inputs: Named axes of each input.
        outputs: Named axes of each output.

    Raises:
        ExportError: when an axis that should be named has a fixed size, or shares its symbol with
            another.
    """
    _resolve_cast_like(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    _name_axes(model, [*zip(model.graph.inputs, inputs, strict=True)])
    for value, spec in zip(model.graph.outputs, outputs, strict=True):
        # An output may be computed in a way that the exporter can state only as an expression.
        value.shape = _named_shape(value, spec)
    model.producer_name = PRODUCER
    model.producer_version = None
    model.doc_string = None
    model.graph.name = "main"


def _resolve_cast_like(model: ir.Model) -> None:
    """Write `CastLike` as `Cast`, where the type to cast to is known.

    Simplifiers leave `CastLike` alone, and quantisers and TensorRT know it badly.
    """
    for node in model.graph.all_nodes():
        target = node.inputs[1] if node.op_type == "CastLike" else None
        if target is not None and target.dtype is not None:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", int(target.dtype))


def _name_axes(model: ir.Model, pairs: Sequence[tuple[ir.Value, TensorSpec]]) -> None:
    """Rename the exporter's symbols (`s26`) to the names of the axes, in all shapes."""
    names: dict[str, str] = {}
    for value, spec in pairs:
        for index, axis in enumerate(spec.axes):
            if isinstance(axis, int):
                continue
            symbol = _symbol(value, index, axis)
            if names.setdefault(symbol, axis) != axis:
                raise ExportError(
                    f"axes `{names[symbol]}` and `{axis}` have become one in input `{value.name}`"
                )
    # Each tensor of a cache keeps a symbol of its own for the past, which the trace has found equal.
    lone = [axis for axis in names.values() if axis != PAST_AXIS]
    if len(set(lone)) != len(lone):
        raise ExportError(f"one axis has several symbols in the traced model: {names}")
    for value in _all_values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _symbol(value: ir.Value, index: int, axis: str) -> str:
    dim = None if value.shape is None else value.shape[index]
    if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
        raise ExportError(
            f"axis `{axis}` of input `{value.name}` has the fixed size {dim} in the traced model"
        )
    return dim.value


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    """An axis under its new name; an expression of several symbols is left unnamed."""
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else names.get(dim.value)


def _named_shape(value: ir.Value, spec: TensorSpec) -> ir.Shape:
    if value.shape is None or len(value.shape) < len(spec.axes):
        raise ExportError(f"output `{value.name}` has {value.shape} for shape, not {spec.axes}")
    for dim, axis in zip(value.shape, spec.axes, strict=False):
        is_right = dim == axis if isinstance(dim, int) else dim.value in {None, axis}
        if not is_right:
            raise ExportError(f"axis `{axis}` of output `{value.name}` is {dim}")
    return ir.Shape([*spec.axes, *value.shape[len(spec.axes) :]])


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs
