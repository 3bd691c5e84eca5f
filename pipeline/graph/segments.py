"""A part of a graph as a model of its own, that starts from given inner values.

With the right values put in at its start, what is wrong at its end was made inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx

from pipeline.graph.files import save_model
from pipeline.graph.inspect import iter_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

FED: Final = "fed:"
"""Before the name of a value where it is put in: the same value may be computed beside it."""


def write_segment(
    model: onnx.ModelProto,
    results: Sequence[str],
    given: Mapping[str, int],
    directory: Path,
) -> tuple[Path, tuple[str, ...]]:
    """Write what computes some values out of others.

    Args:
        model: With all weights in memory; not changed.
        results: Values that the segment returns.
        given: Values that it may be given, with their element types (`onnx.TensorProto`); none of
            them is read by a subgraph.
        directory: An empty directory.

    Returns:
        The path of the model, and the given values that it takes, under `FED` and their name.
    """
    makers = _makers(model.graph)
    needed, taken = _reached(makers, results, given)
    part = onnx.ModelProto()
    part.CopyFrom(_without_graph(model))
    graph = part.graph
    graph.name = "segment"
    for node in model.graph.node:
        if id(node) in needed:
            copy = graph.node.add()
            copy.CopyFrom(node)
            for place, name in enumerate(copy.input):
                if name in taken:
                    copy.input[place] = f"{FED}{name}"
    read = {name for node in graph.node for name in _read_names(node)}
    stored = {tensor.name for tensor in model.graph.initializer}
    graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    graph.input.extend(
        value for value in model.graph.input if value.name in read and value.name not in stored
    )
    for name in taken:
        # Of whatever shape: only the type of an input must be said.
        value = graph.input.add(name=f"{FED}{name}")
        value.type.tensor_type.elem_type = given[name]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in results)
    return save_model(part, directory), tuple(taken)


def read_by(
    graph: onnx.GraphProto, results: Sequence[str], given: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """For each result the given values that it is computed from, with no other given one between."""
    makers = _makers(graph)
    return {name: tuple(_reached(makers, [name], given)[1]) for name in results}


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output if name}


def _reached(
    makers: Mapping[str, onnx.NodeProto], results: Sequence[str], given: Collection[str]
) -> tuple[set[int], dict[str, None]]:
    """Identities of the nodes that compute some values, and the given values they start from."""
    needed: set[int] = set()
    taken: dict[str, None] = {}
    queue = [makers[name] for name in results]
    while queue:
        node = queue.pop()
        if id(node) in needed:
            continue
        needed.add(id(node))
        for name in _read_names(node):
            if name in given:
                taken[name] = None
            elif name in makers:
                queue.append(makers[name])
    return needed, taken


def _read_names(node: onnx.NodeProto) -> list[str]:
    """What a node reads, and what its subgraphs do."""
    return [name for each in iter_nodes([node]) for name in each.input if name]


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        opset_import=model.opset_import,
        functions=model.functions,
    )
