"""Other names for the files that hold a graph's weights; the weights themselves are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx.external_data_helper import uses_external_data

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def rename_external(source: Path, place: Path, names: Mapping[str, str]) -> None:
    """Write a graph that looks for its weights elsewhere.

    Args:
        source: The graph; its weights stay where they are.
        place: Where the new one is written.
        names: Old location -> new location, for every file that it names.

    Raises:
        ArtifactError: weights are in a file that has no new name.
    """
    model = onnx.load(source, load_external_data=False)
    for tensor in _tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if entry.value not in names:
                raise ArtifactError(
                    f"`{tensor.name}` is in `{entry.value}`, which is not among its files",
                    where=str(source),
                )
            entry.value = names[entry.value]
    place.write_bytes(model.SerializeToString(deterministic=True))


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
