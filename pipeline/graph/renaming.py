"""Other names for a graph's axes and for the files of its weights, as other programs expect them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx.external_data_helper import uses_external_data

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def rename_outside(
    source: Path, place: Path, *, files: Mapping[str, str], axes: Mapping[str, str]
) -> None:
    """Write a graph with other names; weights in files of their own are not read.

    Args:
        source: The graph.
        place: Where the new one is written; weights are looked for beside it.
        files: Old location -> new location, for every file that holds weights.
        axes: Old name -> new name of free axes of inputs and outputs; others stay.

    Raises:
        ArtifactError: weights are in a file that has no new name, or two axes would get one name.
    """
    model = onnx.load(source, load_external_data=False)
    _rename_axes(model.graph, axes, source)
    for tensor in _tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if entry.value not in files:
                raise ArtifactError(
                    f"`{tensor.name}` is in `{entry.value}`, which is not among its files",
                    where=str(source),
                )
            entry.value = files[entry.value]
    place.write_bytes(model.SerializeToString(deterministic=True))


def _rename_axes(graph: onnx.GraphProto, axes: Mapping[str, str], source: Path) -> None:
    values = [*graph.input, *graph.output, *graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    taken = {dim.dim_param for dim in dims} - set(axes)
    for new in axes.values():
        if new in taken:
            raise ArtifactError(f"an axis is called `{new}` already", where=str(source))
    for dim in dims:
        dim.dim_param = axes.get(dim.dim_param, dim.dim_param)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Stored tensors of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
