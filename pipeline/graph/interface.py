"""The outside of a graph: names, types and named axes of its inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import ExportError, StageError
from pipeline.graph.inspect import TensorDescription, describe_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from pipeline.tasks import TensorSpec

_ONNX_NAMES: Final[Mapping[str, str]] = {"int64": "int64", "float32": "float"}
"""numpy's name of an element type -> ONNX's."""


def graph_interface(
    model: onnx.ModelProto,
) -> tuple[tuple[TensorDescription, ...], tuple[TensorDescription, ...]]:
    """Inputs (without initializers) and outputs, in the order of the graph."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return (
        tuple(
            describe_value(value) for value in model.graph.input if value.name not in initializers
        ),
        tuple(describe_value(value) for value in model.graph.output),
    )


def require_interface(
    model: onnx.ModelProto, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Check that a graph has exactly these inputs and outputs, in this order, with these axes and types.

    Raises:
        ExportError: naming the first difference.
    """
    for kind, actual, expected in zip(
        ("input", "output"), graph_interface(model), (inputs, outputs), strict=True
    ):
        names, wanted = [value.name for value in actual], [spec.name for spec in expected]
        if names != wanted:
            raise ExportError(
                f"the graph's {kind}s are {', '.join(names) or 'none'}; expected are "
                f"{', '.join(wanted)}"
            )
        for value, spec in zip(actual, expected, strict=True):
            dtype = _ONNX_NAMES[spec.dtype if kind == "input" else "float32"]
            if value.dtype != dtype:
                raise ExportError(f"{kind} `{value.name}` is {value.dtype}; expected is {dtype}")
            fixed = value.shape[len(spec.axes) :]
            if value.shape[: len(spec.axes)] != spec.axes or not all(
                isinstance(size, int) and size > 0 for size in fixed
            ):
                raise ExportError(
                    f"{kind} `{value.name}` has shape {_in_words(value.shape)}; expected are the "
                    f"named axes {_in_words(spec.axes)} and fixed sizes after them"
                )


def require_same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that an edit left names, types, shapes, order and opset of a graph as they were.

    Raises:
        StageError: naming the first difference.
    """
    for kind, old, new in zip(
        ("input", "output"), graph_interface(before), graph_interface(after), strict=True
    ):
        for one, other in zip(old, new, strict=False):
            if one != other:
                raise StageError(f"{kind} `{one.name}` changed from {one} to {other}")
        if len(old) != len(new):
            raise StageError(f"the graph had {len(old)} {kind}s and now has {len(new)}")
    opsets = [
        {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        for model in (before, after)
    ]
    if opsets[0].get("ai.onnx") != opsets[1].get("ai.onnx"):
        raise StageError(
            f"the opset changed from {opsets[0].get('ai.onnx')} to {opsets[1].get('ai.onnx')}"
        )


def _in_words(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
