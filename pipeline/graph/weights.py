"""What the stored numbers of a model are for: bytes by operator and element type."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.graph.inspect import count_weight_bytes, element_bits
from pipeline.graph.layers import iter_layers

if TYPE_CHECKING:
    import onnx

REST = "rest"
"""Biases, norms, scales, indices and constants: what `iter_layers` leaves out."""


def weights_by_operator(model: onnx.ModelProto) -> list[dict[str, str | int]]:
    """Bytes of all tensors by the operator that reads them and by element type, largest first.

    Operators are told from the graph, as names of tensors do not survive all tools. A tensor that
    several layers share counts once, for the first of them.

    Returns:
        Records of `part` (an operator, or `rest`), `dtype` (ONNX's name) and `size_bytes`. Their
        sum is that of `count_weight_bytes`.
    """
    sizes: Counter[tuple[str, str]] = Counter()
    rest = Counter(count_weight_bytes(model))
    seen: set[str] = set()
    for layer in iter_layers(model):
        size = (layer.parameters * element_bits(layer.dtype) + 7) // 8
        # Functions may repeat names, and a tensor cannot be larger than what is left.
        if layer.weight in seen or size > rest[layer.dtype]:
            continue
        seen.add(layer.weight)
        sizes[layer.op, layer.dtype] += size
        rest[layer.dtype] -= size
    sizes.update({(REST, dtype): size for dtype, size in rest.items()})
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"part": part, "dtype": dtype, "size_bytes": size}
        for (part, dtype), size in ordered
        if size
    ]
