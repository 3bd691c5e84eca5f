"""Weights of very large checkpoints in 16 bits: float32 to whoever edits a graph, 16 bits on disk.

Between stages a graph is a file. In float32 a checkpoint of 14 GB would be written as 28 GB, once by
each stage. Where its float32 weights pass `NARROW_LIMIT_BYTES`, they are written as the checkpoint has
them, each with a `Cast` to float32 behind it that changes no value. When a graph is read, such a pair
becomes a float32 weight again, whose numbers are made when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

    from pipeline.data.stored_tensors import StoredTensor

_TYPES: Final = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}
"""safetensors' names of types in 16 bits."""

_NODE: Final = "widen_"
"""How the name of such a `Cast` begins; the rest is the name of the weight."""
_SUFFIX: Final = "_in_16_bits"
"""What is put behind a weight's name for its numbers on disk."""

SMALLEST: Final = 1 << 14
"""Numbers of a weight from which on it is worth a `Cast`."""

_BLOCK: Final = 1 << 22
"""Numbers that are widened at a time."""


class NarrowWeight(ir.LazyTensor):
    """A float32 weight whose numbers lie in 16 bits outside; holds none of them.

    Args:
        narrow: Where they are.
        name: Of the weight.
    """

    def __init__(self, narrow: ir.ExternalTensor, name: str | None) -> None:
        shape = ir.Shape(narrow.shape.numpy())
        super().__init__(self._made, ir.DataType.FLOAT, shape, name=name)
        self.narrow = narrow

    def _made(self) -> ir.Tensor[Any]:
        wide = self.narrow.numpy().astype(np.float32)
        self.narrow.release()
        return ir.Tensor(wide, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the numbers as float32, a piece at a time."""
        flat = self.narrow.numpy().reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            file.write(flat[start : start + _BLOCK].astype(np.float32).view(np.uint8).data)
        del flat
        self.narrow.release()


def narrow_weight(source: StoredTensor, name: str | None) -> NarrowWeight | None:
    """A large tensor of a checkpoint as such a weight; None for others and those not in 16 bits."""
    dtype = _TYPES.get(source.dtype)
    if dtype is None or source.size < SMALLEST:
        return None
    stored = ir.ExternalTensor(
        source.file, source.offset, 2 * source.size, dtype, shape=ir.Shape(source.shape),
        name=f"{name}{_SUFFIX}",
    )  # fmt: skip
    return NarrowWeight(stored, name)


def split_weights(model: ir.Model) -> None:
    """Make a pair of 16 bits and a `Cast` of each such weight, as a file holds them."""
    from pipeline.graph.large_weights import TransposedWeight

    graph = model.graph
    made: list[ir.Node] = []
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        stored: ir.TensorProtocol
        if isinstance(tensor, NarrowWeight):
            stored = tensor.narrow
        elif isinstance(tensor, TransposedWeight) and isinstance(tensor.source, NarrowWeight):
            stored = TransposedWeight(tensor.source.narrow, tensor.order, f"{name}{_SUFFIX}")
        else:
            continue
        stored.name = f"{name}{_SUFFIX}"
        held = ir.Value(
            name=stored.name, shape=ir.Shape(stored.shape.numpy()),
            type=ir.TensorType(stored.dtype), const_value=stored,
        )  # fmt: skip
        attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
        del graph.initializers[name]
        graph.register_initializer(held)
        wide = ir.Value(name=name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
        made.append(ir.Node("", "Cast", [held], attributes, outputs=[wide], name=f"{_NODE}{name}"))
        _replace(graph, value, wide)
    if made and len(graph):
        graph.insert_before(graph[0], made)
    else:
        graph.extend(made)


def join_weights(model: ir.Model) -> None:
    """Make float32 weights of the pairs that `split_weights` made."""
    graph = model.graph
    for node in tuple(graph):
        held = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
        wide = node.outputs[0]
        if held is None or node.name != f"{_NODE}{wide.name}" or not held.is_initializer():
            continue
        stored = held.const_value
        if not isinstance(stored, ir.ExternalTensor) or held.name != f"{wide.name}{_SUFFIX}":
            continue
        name = str(wide.name)
        weight = ir.Value(
            name=name, shape=ir.Shape(stored.shape.numpy()),
            type=ir.TensorType(ir.DataType.FLOAT), const_value=NarrowWeight(stored, name),
        )  # fmt: skip
        _replace(graph, wide, weight)
        graph.remove(node, safe=True)
        del graph.initializers[str(held.name)]
        graph.register_initializer(weight)


def widened_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Names of stored numbers in 16 bits that are used for nothing but their `Cast` to float32."""
    graph = model.graph
    pairs = {
        node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.name == f"{_NODE}{node.output[0]}"
    }
    others = {
        name
        for node in graph.node
        for name in node.input
        if not (node.op_type == "Cast" and node.name.startswith(_NODE))
    }
    return frozenset(pairs - others - {value.name for value in graph.output})


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, new)
    for place, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[place] = new
