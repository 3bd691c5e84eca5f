"""Edits of graphs whose weights lie outside: the tools that edit see the graph, and never the numbers.

Weights are handed to them as inputs and become weights again afterwards. What a tool would compute from
such a weight alone, its transpose, is done here, while it is written.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import NDArray

LARGE_BYTES: Final = 1 << 16
"""Smaller weights are shown to the tools, which fold them."""

_BLOCK_BYTES: Final = 1 << 25
"""Of a weight that is transposed, at a time."""

_STRIP: Final = 64
"""Lines of a weight that are read side by side while it is transposed."""


class TransposedWeight(ir.LazyTensor):
    """A weight with its axes in another order; holds no numbers.

    Args:
        source: The weight.
        order: Which of its axes each axis of this one is.
        name: Of the tensor.
    """

    def __init__(
        self, source: ir.TensorProtocol, order: tuple[int, ...], name: str | None
    ) -> None:
        sizes = source.shape.numpy()
        shape = ir.Shape([sizes[axis] for axis in order])
        super().__init__(self._made, source.dtype, shape, name=name)
        self.source = source
        self.order = order

    def _made(self) -> ir.Tensor[Any]:
        array = turned(self.source.numpy().transpose(self.order))
        release_weight(self.source)
        return ir.Tensor(array, dtype=self.dtype, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the numbers a piece at a time."""
        if self.dtype.bitwidth < 8:
            super().tofile(file)
            return
        self._write(file, self.source.numpy().transpose(self.order))
        release_weight(self.source)

    def _write(self, file: Any, view: np.ndarray) -> None:
        step = max(1, _BLOCK_BYTES * len(view) // max(view.nbytes, 1))
        for start in range(0, len(view), step):
            file.write(turned(view[start : start + step]).view(np.uint8).data)


def turned(view: NDArray[Any]) -> NDArray[Any]:
    """A copy in the order of its axes, of an array that lies in another order.

    It is made a strip at a time, whose lines all stay in the cache until they were read to their
    end: four times as fast as one copy of a large matrix.
    """
    copy = np.empty(view.shape, view.dtype)
    if view.ndim < 2:
        copy[...] = view
        return copy
    for start in range(0, view.shape[-1], _STRIP):
        copy[..., start : start + _STRIP] = view[..., start : start + _STRIP]
    return copy


def release_weight(tensor: ir.TensorProtocol | None) -> None:
    """Unmap a weight that lies outside, so that its pages no longer count as memory of this process.

    It is mapped again when it is asked for. Where somebody still holds its array nothing happens.
    """
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):
            tensor.release()


def has_outside_weights(model: ir.Model) -> bool:
    """Whether some large weight of the main graph is in a file of its own."""
    return any(_is_large(value) for value in model.graph.initializers.values())


def edit_without_weights(
    model: ir.Model, edit: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> ir.Model:
    """Let a tool edit a graph that shows large weights as inputs.

    Args:
        model: As `pipeline.graph.files.load_ir_model` reads it; not to be used afterwards.
        edit: Keeps inputs and outputs of the graph.
    """
    graph = model.graph
    for node in tuple(graph):
        _take_transpose(graph, node)
    held = {}
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        if not _is_large(value):
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name
                )
                release_weight(tensor)
            continue
        del graph.initializers[name]
        if value.uses() or value.is_graph_output():
            held[name] = tensor
            value.const_value = None
            graph.inputs.append(value)
    edited = ir.serde.deserialize_model(edit(ir.serde.serialize_model(model)))
    for value in tuple(edited.graph.inputs):
        if value.name in held:
            edited.graph.inputs.remove(value)
            if value.uses() or value.is_graph_output():
                value.const_value = held[value.name]
                edited.graph.register_initializer(value)
    return edited


def turn_weights(model: ir.Model) -> None:
    """Transpose weights while they are written that only a `Transpose` reads, in place.

    Whoever edits the graph next finds them as products take them, and copies them from file to file.

    Args:
        model: Whose weights lie outside, such as those of a checkpoint.
    """
    graph = model.graph
    for node in tuple(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or len(weight.uses()) != 1 or weight.is_graph_output():
            continue  # it would be stored twice
        _take_transpose(graph, node)
        if weight.is_initializer() and not weight.uses():
            del graph.initializers[str(weight.name)]


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    is_outside = isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor))
    return is_outside and tensor is not None and tensor.nbytes >= LARGE_BYTES


def _take_transpose(graph: ir.Graph, node: ir.Node) -> None:
    """Make a weight of a transposed weight; it has the name of the result, as folding would give it."""
    weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
    if weight is None or not weight.is_initializer() or not _is_large(weight):
        return
    made, tensor = node.outputs[0], weight.const_value
    if made.is_graph_output() or tensor is None or isinstance(tensor, TransposedWeight):
        return
    given = node.attributes.get("perm")
    axes = len(tensor.shape)
    order = tuple(range(axes))[::-1] if given is None else tuple(given.as_ints())
    turned = TransposedWeight(tensor, order, made.name)
    value = ir.Value(
        name=made.name, shape=turned.shape, type=ir.TensorType(turned.dtype), const_value=turned
    )
    ir.convenience.replace_all_uses_with(made, value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)
