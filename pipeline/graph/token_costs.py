"""What a decoder graph reads and computes for one token, as its stored weights say."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from pipeline.graph.files import load_graph_only
from pipeline.graph.inspect import dtype_name, element_bits, iter_nodes
from pipeline.graph.layers import iter_layers

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

_LOOKUPS: Final = frozenset({"Gather", "com.microsoft::GatherBlockQuantized"})
"""They read one row of their table for a token, and multiply nothing."""

_PACKED: Final = frozenset({"MatMulNBits", "MatMulBnb4"})
"""Their weights are stored as bytes of several numbers; attributes `K` and `N` say how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCosts:
    """Of one graph.

    Attributes:
        weight_bytes: Of all weights that products read, each once: what a step of any batch fetches.
        products: Multiplications with a weight for one token; each is followed by an addition.
    """

    weight_bytes: int
    products: int

    @property
    def flops(self) -> int:
        """Operations for one token of one text, those between queries and keys left out.

        Source: Chowdhery et al., PaLM, 2022, appendix B: 2 N for the forward pass of N weights.
        """
        return 2 * self.products


def token_costs(path: Path) -> TokenCosts:
    """Look through a model file; weights in external data are not read.

    Raises:
        ArtifactError: when the file is missing or is no ONNX model.
    """
    model = load_graph_only(path)
    packed = {
        name: count for node in iter_nodes(model.graph.node) for name, count in _packed_sizes(node)
    }
    sizes: dict[str, int] = {}
    products = 0
    for layer in iter_layers(model):
        if layer.op in _LOOKUPS:
            continue
        sizes[layer.weight] = layer.parameters * element_bits(layer.dtype) // 8
        if layer.weight in packed:
            products += packed[layer.weight]
        elif layer.op.split("::")[-1] not in _PACKED:
            products += layer.parameters
    return TokenCosts(weight_bytes=sum(sizes.values()) + _scale_bytes(model), products=products)


def _packed_sizes(node: onnx.NodeProto) -> list[tuple[str, int]]:
    """The weight of a product of packed numbers and how many numbers it holds."""
    if node.op_type not in _PACKED:
        return []
    sizes = {entry.name: entry.i for entry in node.attribute if entry.name in {"K", "N"}}
    return [(node.input[1], prod(sizes.values()))] if len(sizes) == 2 else []


def _scale_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the scales and zero points that stored weights are read with.

    Tables of scales with several axes are among the layers of a packed product already.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names: set[str] = set()
    for node in iter_nodes(model.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            names.update(node.input[1:])
        elif node.op_type in _PACKED:
            names.update(name for name in node.input[2:] if len(_dims(tensors, name)) < 2)
    return sum(
        prod(tensors[name].dims) * _bits(tensors[name]) // 8 for name in names if name in tensors
    )


def _dims(tensors: dict[str, onnx.TensorProto], name: str) -> list[int]:
    return list(tensors[name].dims) if name in tensors else []


def _bits(tensor: onnx.TensorProto) -> int:
    return element_bits(dtype_name(tensor.data_type))
