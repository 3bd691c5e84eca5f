"""Compares a graph with what it must be, by records: nodes in words, stored tensors by their digests.

A record holds no numbers. So one is made of the graph as it must be and one of the graph as it is stored, one
after the other, and never are both graphs in memory.

Compared are inputs and outputs of the graph with their types, its sets of operators, nodes with names,
types, attributes and values, their order, and all stored tensors, also those of branches, loops and
functions. Not compared are the types that a file tells of values inside the graph: nothing is computed with
them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from pipeline.graph.fusions.matching import node_name
from pipeline.graph.large_weights import release_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = Literal["changed_nodes", "changed_constants"]

_GRAPHS: Final = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_FLOATS: Final = frozenset({ir.AttributeType.FLOAT, ir.AttributeType.FLOATS})
_TENSORS: Final = frozenset({ir.AttributeType.TENSOR, ir.AttributeType.TENSORS})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node in words.

    Attributes:
        layer: Its name, or that of what it makes when it has none.
        op_type: With its domain.
        attributes: By name; numbers as they are written, tensors by their digests.
        inputs: Names of what it reads; empty for one that is left out.
        outputs: Names of what it makes.
    """

    layer: str
    op_type: str
    attributes: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """A graph without its numbers.

    Attributes:
        borders: Inputs, outputs and sets of operators, in words.
        nodes: By what they make first, in the order of the graph.
        tensors: Name of a stored tensor -> its type, shape and digest.
        readers: Name of a value -> the last layer that reads it: of a tied table, the product.

    Names within branches, loops and functions have the path to them in front.
    """

    borders: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    tensors: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingDifference:
    """Something that is not as it must be.

    Attributes:
        kind: `changed_nodes` or `changed_constants`.
        layer: The node that it is about; `graph` for none.
        detail: What differs, in words.
    """

    kind: Kind
    layer: str
    detail: str


def record_graph(model: ir.Model) -> GraphRecord:
    """What can be compared of a graph; its weights are read one at a time."""
    record = GraphRecord()
    record.borders["sets of operators"] = str(sorted(model.opset_imports.items()))
    _record(model.graph, "", record)
    for function in model.functions.values():
        name, overload = f"{function.domain}::{function.name}", function.overload
        _record(function.graph, f"{name}:{overload}/" if overload else f"{name}/", record)
    return record


def packing_differences(wanted: GraphRecord, found: GraphRecord) -> tuple[PackingDifference, ...]:
    """Everything in which two graphs differ.

    Args:
        wanted: Of the graph as it must be.
        found: Of the graph as it is stored.
    """
    return (*_node_differences(wanted, found), *_tensor_differences(wanted, found))


def _record(graph: ir.Graph, path: str, record: GraphRecord) -> None:
    """Add a graph, and those within its nodes under a path of their own."""
    for what, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        record.borders[f"{path}{what}"] = ", ".join(
            f"{value.name} {value.type}{value.shape}" for value in values
        )
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            record.tensors[f"{path}{name}"] = _tensor(value.const_value)
    for place, node in enumerate(graph):
        inputs = tuple("" if value is None else value.name or "" for value in node.inputs)
        outputs = tuple(value.name or "" for value in node.outputs)
        first = f"{path}{next(filter(None, outputs), '')}"
        if first in record.nodes:
            first = f"{first} at {place}"
        record.nodes[first] = NodeRecord(
            layer=node_name(node),
            op_type=f"{node.domain or 'ai.onnx'}::{node.op_type}",
            attributes={name: _attribute(each) for name, each in node.attributes.items()},
            inputs=inputs,
            outputs=outputs,
        )
        for name in inputs:  # within a branch, of its own or of the graph around it
            record.readers[name] = record.readers[f"{path}{name}"] = node_name(node)
        for name, attribute in node.attributes.items():
            if attribute.type in _GRAPHS and not attribute.is_ref():
                inner = attribute.value
                for number, each in enumerate([inner] if isinstance(inner, ir.Graph) else inner):
                    _record(each, f"{first}/{name}{number}/", record)


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"of the function: {attribute.ref_attr_name}"
    value: Any = attribute.value
    if attribute.type in _GRAPHS:
        return "recorded apart"
    if attribute.type in _TENSORS:
        tensors = [value] if attribute.type == ir.AttributeType.TENSOR else value
        return str([_tensor(tensor) for tensor in tensors])
    if attribute.type in _FLOATS:  # a file has 32 bits of them
        return str(np.asarray(value, np.float32).tolist())
    if isinstance(value, (list, tuple)):
        return str(list(value))
    return str(value)


class _Digest:
    """A file that keeps only the digest of what is written."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> None:
        self.sha256.update(content)


def _tensor(tensor: ir.TensorProtocol) -> tuple[str, str, str]:
    digest = _Digest()
    if tensor.dtype == ir.DataType.STRING:
        digest.write(repr(tensor.numpy().tolist()).encode())
    elif hasattr(tensor, "tofile"):
        tensor.tofile(digest)
    else:
        digest.write(tensor.tobytes())
    release_weight(tensor)
    return tensor.dtype.name, str(tensor.shape), digest.sha256.hexdigest()


def _node_differences(wanted: GraphRecord, found: GraphRecord) -> Iterator[PackingDifference]:
    def changed(layer: str, detail: str) -> PackingDifference:
        return PackingDifference(kind="changed_nodes", layer=layer, detail=detail)

    for what in {**wanted.borders, **found.borders}:
        ours, theirs = wanted.borders.get(what, "none"), found.borders.get(what, "none")
        if ours != theirs:
            yield changed("graph", f"its {what} are {theirs}, not {ours}")
    for made, node in wanted.nodes.items():
        other = found.nodes.get(made)
        if other is None:
            yield changed(node.layer, f"nothing computes `{made}`")
        elif problem := _node_problem(node, other):
            yield changed(node.layer, problem)
    for made, other in found.nodes.items():
        if made not in wanted.nodes:
            yield changed(other.layer, f"{other.op_type} was added, which computes `{made}`")
    order = [made for made in wanted.nodes if made in found.nodes]
    for one, another in zip(order, filter(wanted.nodes.__contains__, found.nodes), strict=True):
        if one != another:
            yield changed(found.nodes[another].layer, f"it stands where `{one}` is computed")
            return


def _node_problem(node: NodeRecord, other: NodeRecord) -> str:
    """The first thing that differs; empty when nothing does."""
    if node.op_type != other.op_type:
        return f"{other.op_type} in place of {node.op_type}"
    for name in {**node.attributes, **other.attributes}:
        ours, theirs = node.attributes.get(name, "none"), other.attributes.get(name, "none")
        if ours != theirs:
            return f"its attribute `{name}` is {theirs}, not {ours}"
    if node.inputs != other.inputs:
        return f"it reads {_listed(other.inputs)}, not {_listed(node.inputs)}"
    if node.outputs != other.outputs:
        return f"it makes {_listed(other.outputs)}, not {_listed(node.outputs)}"
    return "" if node.layer == other.layer else f"it is called `{other.layer}`"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _tensor_differences(wanted: GraphRecord, found: GraphRecord) -> Iterator[PackingDifference]:
    readers = found.readers | wanted.readers
    for name in {**wanted.tensors, **found.tensors}:
        ours, theirs = wanted.tensors.get(name), found.tensors.get(name)
        if ours == theirs:
            continue
        if theirs is None:
            detail = f"`{name}` is not stored"
        elif ours is None:
            detail = f"`{name}` was added"
        elif ours[:2] != theirs[:2]:
            detail = f"`{name}` is {theirs[0]} {theirs[1]}, not {ours[0]} {ours[1]}"
        else:
            detail = f"`{name}` has other numbers"
        layer = readers.get(name, "graph")
        yield PackingDifference(kind="changed_constants", layer=layer, detail=detail)
