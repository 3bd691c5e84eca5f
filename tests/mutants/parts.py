"""Where things are in the graphs of encoders, at every stage of a conversion.

Weights lose their names when a graph is simplified; biases keep those of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.mutants.surgery import Graph, NotHereError

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import NDArray

ROLES: Final = {
    "query": ("self.query.bias", "q_proj.bias"),
    "key": ("self.key.bias", "k_proj.bias"),
    "value": ("self.value.bias", "v_proj.bias"),
    "attention": ("attention.output.dense.bias", "o_proj.bias"),
    "up": ("intermediate.dense.bias", "fc1.bias"),
    "down": ("output.dense.bias", "fc2.bias"),
    "classifier": ("classifier.bias", "qa_outputs.bias"),
}
"""What a linear layer is for -> the end of its bias's name in BERT, in ViT."""

SUFFIXES: Final = ("", "_fp16", "_bf16", "_quantized")


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer.

    Attributes:
        bias: Name of its stored bias.
        last: The node that adds it.
        product: The node that multiplies; None when it cannot be told.
        weight: Name of its stored weight; empty when it is not a layer's own.
        is_out_first: The weight is (outputs, inputs), as in the checkpoint.
    """

    bias: str
    last: onnx.NodeProto
    product: onnx.NodeProto | None
    weight: str
    is_out_first: bool

    def change(self, graph: Graph, how: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Change the weight; `how` is given it as (inputs, outputs)."""
        if not self.weight:
            raise NotHereError(f"the weight that belongs to `{self.bias}` is not alone")
        if self.is_out_first:
            graph.change(self.weight, lambda weight: how(weight.T).T)
        else:
            graph.change(self.weight, how)


def linear(graph: Graph, role: str, layer: int = 0) -> Linear:
    """The linear layer of this role in this layer; negative layers count from the end."""
    found = [
        name
        for name in graph.find("bias")
        for end in ROLES[role]
        if any(name == f"{stem}{end}{s}" for s in SUFFIXES for stem in (name[: name.find(end)],))
        and end in name
        and not (role == "down" and "attention.output" in name)
    ]
    if not found:
        raise NotHereError(f"there is no layer `{role}`")
    bias = found[layer]
    (last, *_) = graph.readers(bias)
    if last.op_type == "Gemm":
        return Linear(bias, last, last, last.input[1], True)
    other = next(name for name in last.input if name != bias)
    product = graph.maker(other)
    if product is None or product.op_type != "MatMul":
        return Linear(bias, last, None, "", False)
    weight = product.input[1]
    if graph.is_stored(weight):
        return Linear(bias, last, product, weight, False)
    maker = graph.maker(weight)
    if maker is not None and maker.op_type == "Transpose" and graph.is_stored(maker.input[0]):
        return Linear(bias, last, product, maker.input[0], True)
    return Linear(bias, last, product, "", False)


def attention_bias(graph: Graph) -> onnx.NodeProto:
    """The node that turns the mask into what is added to the scores."""
    return graph.nth("Where")


def mask(graph: Graph) -> str:
    """The attention mask as booleans."""
    for node in graph.readers("attention_mask"):
        if node.op_type == "Cast" and node.attribute[0].i == 9:
            return str(node.output[0])
    raise NotHereError("there is no mask")


def position_lookup(graph: Graph) -> onnx.NodeProto:
    """The node that takes rows out of the table of positions."""
    for node in graph.all("Gather"):
        if "position_embeddings" in node.input[0]:
            return node
    raise NotHereError("positions are not looked up")


def token_lookup(graph: Graph) -> onnx.NodeProto:
    """The node that takes rows out of the table of tokens."""
    for node in graph.all("Gather"):
        if "word_embeddings" in node.input[0]:
            return node
    raise NotHereError("there is no table of tokens")


def type_lookup(graph: Graph) -> onnx.NodeProto:
    """The node that takes rows out of the table of token types."""
    for node in graph.all("Gather"):
        if "token_type_embeddings" in node.input[0]:
            return node
    raise NotHereError("there is no table of token types")


def norms(graph: Graph) -> list[onnx.NodeProto]:
    """All layer normalisations, fused or not."""
    return graph.all("LayerNormalization", "SkipLayerNormalization")


def int64(*values: int) -> NDArray[np.int64]:
    """For shapes and indices."""
    return np.asarray(values, dtype=np.int64)
