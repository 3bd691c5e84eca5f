"""Small questions about nodes and values that every fusion asks, and edits all of them make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

CONTRIB_DOMAIN = "com.microsoft"
"""Operators that only ONNX Runtime has."""

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def is_standard(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the ONNX standard."""
    return node is not None and node.domain in _STANDARD_DOMAINS and node.op_type in op_types


def node_name(node: ir.Node) -> str:
    """The name to report: the node's own, else that of its first output."""
    return node.name or node.outputs[0].name or node.op_type


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, or None when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the operator's default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number that `value` always is, or None when it is no constant of one element."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def consumers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read `value`, each once, in a stable order."""
    return tuple(dict.fromkeys(node for node, _ in value.uses()))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, or None when others do or the graph returns it."""
    readers = consumers(value)
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of `old` read `new`, which takes over its name.

    So a tensor is found again under its name, such as its range after the graph was fused. An
    output of the graph keeps its shape too. Both are outputs of nodes, and that of `new` stands
    before all readers of `old`.
    """
    if not old.is_graph_output():
        ir.convenience.replace_all_uses_with(old, new)
        if new.producer() is not None and not new.is_graph_output():
            name = old.name
            old.name = f"{name}_replaced"
            new.name = name
        return
    graph, name = old.graph, old.name
    producer = old.producer()
    if graph is None or producer is None:
        raise ValueError(f"`{name}` is no output of a node")
    if new.is_graph_output():
        copy = ir.node("Identity", [new], name=f"{name}_copy")
        graph.insert_before(producer, copy)
        new = copy.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{name}_replaced"
    new.name = name


class GraphEditor:
    """Inserts nodes and constants with names that depend on nothing but the graph.

    Args:
        graph: Edited in place.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken = {value.name for node in graph for value in node.outputs}
        self._taken |= set(graph.initializers) | {value.name for value in graph.inputs}
        self._integers: dict[tuple[int, ...], ir.Value] = {}
        self._floats: dict[float, ir.Value] = {}

    def name(self, wanted: str) -> str:
        """`wanted`, with a number behind it when the graph already has that name."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def store(self, wanted: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer with the name `wanted`, or that with a number behind it."""
        return self.constant(self.name(wanted), array)

    def insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        output: str,
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        domain: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """Insert a node with one output, named `output`, just before another node."""
        outputs = self.insert_with_outputs(
            before,
            op_type,
            inputs,
            outputs=(output,),
            attributes=attributes,
            domain=domain,
        )
        outputs[0].dtype = dtype
        return outputs[0]

    def insert_with_outputs(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        outputs: Sequence[str],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node just before another one; an output named "" is left out."""
        names = [self.name(name) if name else "" for name in outputs]
        node = ir.node(
            op_type,
            inputs,
            attributes=dict(attributes or {}),
            domain=domain,
            num_outputs=len(names),
            name=names[0],
        )
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name
            value.dtype = ir.DataType.FLOAT
        self._graph.insert_before(before, node)
        if domain == CONTRIB_DOMAIN:
            self._graph.opset_imports.setdefault(CONTRIB_DOMAIN, 1)
        return node.outputs

    def integers(self, elements: Iterable[int]) -> ir.Value:
        """An int64 vector constant; equal ones are shared."""
        key = tuple(elements)
        if key not in self._integers:
            name = self.name(
                "shape_" + "_".join(str(element).replace("-", "m") for element in key)
            )
            self._integers[key] = self.constant(name, np.array(key, dtype=np.int64))
        return self._integers[key]

    def float_scalar(self, number: float) -> ir.Value:
        """A float32 scalar constant; equal ones are shared."""
        if number not in self._floats:
            name = self.name(f"float_{number:g}")
            self._floats[number] = self.constant(name, np.array(number, dtype=np.float32))
        return self._floats[number]

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer called `name`, which must be free (see `name`).

        Integers of 4 bits are kept two to a byte, as they are stored.
        """
        tensor: ir.TensorProtocol = ir.tensor(array, name=name)
        if tensor.dtype in {ir.DataType.INT4, ir.DataType.UINT4}:
            packed = np.frombuffer(tensor.tobytes(), np.uint8)
            tensor = ir.PackedTensor(packed, tensor.dtype, shape=array.shape, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )  # fmt: skip
        self._graph.register_initializer(value)
        return value
