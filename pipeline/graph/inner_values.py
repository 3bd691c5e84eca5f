"""The inner values of a graph, and which layer of the model each of them belongs to.

Values keep their names through simplification, fusion, cast and quantisation (see
`pipeline.graph.fusions.matching.replace_value`), so those of two graphs of one chain are matched by
name. What a value is called among people comes from the export (`pipeline.graph.scopes`); of a graph
from elsewhere it is told from the names of weights, biases and nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.graph.inspect import iter_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

_PASSING: Final = frozenset(
    {
        *("Constant", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    }
)
"""Operators that compute nothing: their results are their inputs in another order."""

_STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx"})
_SUFFIXES: Final = ("_quantized", "_dequantized", "_transposed", "_fp16", "_bf16")
_WEIGHT_ENDINGS: Final = frozenset({"weight", "bias", "gamma", "beta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerValue:
    """One result of a node of the main graph.

    Attributes:
        name: Its name.
        operator: The node's operator; of other domains as `domain::operator`.
        node: The node's name.
        layer: The layer of the model that it belongs to, such as `encoder.layer.3.output.dense`;
            empty when nothing tells it.
        is_computed: Not a mere view of another value.
    """

    name: str
    operator: str
    node: str
    layer: str
    is_computed: bool


def read_inner_values(graph: onnx.GraphProto, scopes: Mapping[str, str]) -> tuple[InnerValue, ...]:
    """All results of nodes, in the order of the graph; of nodes with several, the first.

    Args:
        graph: Subgraphs are not looked into.
        scopes: Value -> layer, as far as it is known.
    """
    weights = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return tuple(
        InnerValue(
            name=node.output[0],
            operator=node.op_type
            if node.domain in _STANDARD_DOMAINS
            else f"{node.domain}::{node.op_type}",
            node=node.name or node.output[0],
            layer=scopes.get(node.output[0]) or _told_layer(node, weights, readers),
            is_computed=node.op_type not in _PASSING,
        )
        for node in graph.node
        if node.output and node.output[0]
    )


def captured_names(graph: onnx.GraphProto) -> frozenset[str]:
    """Names that subgraphs (of `If`, `Loop`, `Scan`) read, their own among them."""
    inner = [
        node
        for outer in graph.node
        for node in iter_nodes([outer])
        if node is not outer
    ]  # fmt: skip
    outputs = [
        value.name
        for node in (*graph.node, *inner)
        for attribute in node.attribute
        for value in attribute.g.output
    ]
    return frozenset([name for node in inner for name in node.input] + outputs)


def _told_layer(
    node: onnx.NodeProto,
    weights: set[str],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
) -> str:
    """The layer by the names of a node's weights, of the bias that is added next, or its own."""
    for name in _weight_names(node, weights):
        return _without_last(name)
    followers = readers.get(node.output[0], ())
    if len(followers) == 1 and followers[0].op_type == "Add":
        for name in _weight_names(followers[0], weights):
            return _without_last(name)
    if node.name.startswith("/") and node.name.count("/") > 1:  # torch's older exporter
        return node.name.strip("/").rpartition("/")[0].replace("/", ".")
    return ""


def _weight_names(node: onnx.NodeProto, weights: set[str]) -> Iterator[str]:
    """Names of stored tensors that look like those of a checkpoint, without what stages append."""
    for name in node.input:
        plain = name
        while found := next((end for end in _SUFFIXES if plain.endswith(end)), ""):
            plain = plain.removesuffix(found)
        is_stored = name in weights or f"{plain}_quantized" in weights
        if is_stored and plain.rpartition(".")[2] in _WEIGHT_ENDINGS and "." in plain:
            yield plain


def _without_last(name: str) -> str:
    return name.rpartition(".")[0]
