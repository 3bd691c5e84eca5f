"""Finds the attention blocks of a graph: what a runtime is expected to fuse, so that it can be counted.

A block is one `Attention` node, or a softmax between two products of activations: scores before it,
values after it, and between them only element-wise and shape operators (scale, mask, casts).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx

_PRODUCTS = frozenset({"Einsum", "MatMul"})
_PASSED = frozenset({
    "Add", "And", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Expand", "Identity", "IsNaN",
    "Max", "Min", "Mul", "QuantizeLinear", "Reshape", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where",
})  # fmt: skip
_MAX_STEPS = 64  # a block is local; a mask's own arithmetic may be long


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """The names of the nodes that make an attention; unnamed ones as TensorRT names them.

    Attributes:
        nodes: `(attention,)`, or `(scores product, softmax, values product)`.
    """

    nodes: tuple[str, ...]


def node_label(node: onnx.NodeProto) -> str:
    """The node's name, or what TensorRT calls it when it has none (seen with RTX 1.7.1)."""
    return node.name or f"node_of_{node.output[0]}"


def find_attention_blocks(graph: onnx.GraphProto) -> tuple[AttentionBlock, ...]:
    """The blocks of the main graph, in its order."""
    producers = {output: node for node in graph.node for output in node.output if output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}

    def is_product(node: onnx.NodeProto) -> bool:
        return node.op_type in _PRODUCTS and not constants.intersection(node.input)

    def before(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return [producers[name] for name in node.input if name in producers]

    def after(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return [user for name in node.output for user in consumers.get(name, ())]

    blocks = []
    for node in graph.node:
        if node.op_type == "Attention" and node.domain in {"", "ai.onnx"}:
            blocks.append(AttentionBlock((node_label(node),)))
        elif node.op_type == "Softmax":
            scores = _nearest(node, before, is_product)
            values = _nearest(node, after, is_product)
            if scores is not None and values is not None:
                blocks.append(
                    AttentionBlock((node_label(scores), node_label(node), node_label(values)))
                )
    return tuple(blocks)


def _nearest(
    start: onnx.NodeProto,
    step: Callable[[onnx.NodeProto], Iterable[onnx.NodeProto]],
    is_wanted: Callable[[onnx.NodeProto], bool],
) -> onnx.NodeProto | None:
    queue = deque(step(start))
    seen = 0
    while queue and seen < _MAX_STEPS:
        node = queue.popleft()
        seen += 1
        if is_wanted(node):
            return node
        if node.op_type in _PASSED:
            queue.extend(step(node))
    return None
