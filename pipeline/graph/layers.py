"""In which precision each layer's weight is stored."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import onnx

from pipeline.graph.inspect import dtype_name, iter_nodes
from pipeline.graph.model_facts import LayerFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

_PASSING = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators through which a weight reaches its layer; each takes it as its first input."""

_FLAT_WEIGHTS = frozenset({"MatMulBnb4"})
"""Their second input is a matrix that is stored as a vector of bytes."""

_NO_WEIGHTS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING})
"""Element types of indices, masks and vocabularies."""


def iter_layers(model: onnx.ModelProto) -> Iterator[LayerFacts]:
    """All nodes that compute with a stored tensor of two axes or more, in the order of the graph.

    Biases, norms and scales have one axis; they are left out, as they hardly weigh anything.
    Subgraphs and functions are included, each function with its own names.
    """
    yield from _scope(model.graph.node, model.graph.initializer)
    for function in model.functions:
        yield from _scope(function.node, ())


def _scope(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[onnx.TensorProto]
) -> Iterator[LayerFacts]:
    all_nodes = list(iter_nodes(nodes))
    stored = {tensor.name: tensor for tensor in initializers}
    makers: dict[str, onnx.NodeProto] = {}
    for node in all_nodes:
        makers.update(dict.fromkeys(node.output, node))
        for attribute in node.attribute:
            stored.update({tensor.name: tensor for tensor in attribute.g.initializer})
            if node.op_type == "Constant" and attribute.HasField("t") and node.output:
                stored[node.output[0]] = attribute.t
    for node in all_nodes:
        if node.op_type in _PASSING:
            continue
        for name in node.input:
            found = _find_stored(name, stored, makers)
            if found is None:
                continue
            weight, tensor = found
            is_flat = node.op_type in _FLAT_WEIGHTS and name == node.input[1]
            if (len(tensor.dims) < 2 and not is_flat) or tensor.data_type in _NO_WEIGHTS:
                continue
            yield LayerFacts(
                node=node.name or (node.output[0] if node.output else ""),
                op=node.op_type
                if node.domain in _STANDARD_DOMAINS
                else f"{node.domain}::{node.op_type}",
                weight=weight,
                dtype=dtype_name(tensor.data_type),
                parameters=prod(tensor.dims),
            )


def _find_stored(
    name: str, stored: dict[str, onnx.TensorProto], makers: dict[str, onnx.NodeProto]
) -> tuple[str, onnx.TensorProto] | None:
    seen: set[str] = set()  # a graph that was not checked may run in a circle
    while name and name not in seen:
        if name in stored:
            return name, stored[name]
        seen.add(name)
        maker = makers.get(name)
        if maker is None or maker.op_type not in _PASSING or not maker.input:
            return None
        name = maker.input[0]
    return None
