"""A graph cast from float32 to 16 bits, float16 or bfloat16, with float32 inputs and outputs.

Casts stand only where the two types meet, one for each value and direction. The mask and the
softmax of attention go to 16 bits as a whole: TensorRT-RTX 1.7 fuses attention in 6 of 6 layers of
MiniLM so, and in none when mask nodes stay in float32 (eight times the activation memory).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.errors import StageError
from pipeline.graph.half_rules import (
    FLOAT16,
    HalfType,
    Kept,
    constant_array,
    fitted,
    is_float,
    nodes_to_keep,
)

if TYPE_CHECKING:
    from collections.abc import Collection

_TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that name an element type (ONNX opset 24)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCast:
    """What a cast did.

    Attributes:
        kept: Nodes that stay in float32, in the order of the graph.
        share: Share of the floating-point weights, by bytes before the cast, that are stored in 16
            bits.
        clamped_constants: Names of scalars that stand for infinity and were made smaller.
        vanished: How many weights that were not zero are zero now.
        casts: How many Cast nodes were put in.
    """

    kept: tuple[Kept, ...]
    share: float
    clamped_constants: tuple[str, ...]
    vanished: int
    casts: int


def cast_to_half(model: ir.Model, kind: HalfType = FLOAT16) -> HalfCast:
    """Cast a model to 16 bits in place.

    Raises:
        StageError: when a weight is too large for the type (naming the tensor), the type of a value
            is not known, or a node has a subgraph.
    """
    graph = model.graph
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.ShapeInferencePass()(model)
    _require_castable(graph)
    kept = nodes_to_keep(graph, model.opset_imports[""], kind)
    caster = _Caster(graph, frozenset(kept), kind)
    weights = {value.name: value.const_value for value in _float_initializers(graph)}
    caster.cast_nodes()
    caster.restore_outputs()
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    before = sum(tensor.nbytes for tensor in weights.values() if tensor is not None)
    still = sum(
        value.const_value.nbytes
        for value in _float_initializers(graph)
        if value.const_value is not None
    )
    return HalfCast(
        kept=tuple(kept[node] for node in graph if node in kept),
        share=1 - still / before if before else 1.0,
        clamped_constants=tuple(caster.clamped),
        vanished=caster.vanished,
        casts=caster.casts,
    )


def _require_castable(graph: ir.Graph) -> None:
    for node in graph:
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            raise StageError(
                f"node `{node.name}` ({node.op_type}) has a subgraph, which cannot be cast yet"
            )
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise StageError(f"the type of `{value.name}` ({node.op_type}) is not known")


_GRAPHS: Final = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def _float_initializers(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if is_float(value)]


class _Caster:
    """Casts the nodes of one graph, one after the other."""

    def __init__(self, graph: ir.Graph, kept: Collection[ir.Node], kind: HalfType) -> None:
        self._graph = graph
        self._kind = kind
        self._kept = kept
        self._half: dict[ir.Value, ir.Value] = {}
        self._full: dict[ir.Value, ir.Value] = {}
        self.clamped: list[str] = []
        self.vanished = 0
        self.casts = 0

    def cast_nodes(self) -> None:
        """Give every node the inputs of its own type, and its outputs that type."""
        for node in tuple(self._graph):
            if node in self._kept:
                for index, value in enumerate(node.inputs):
                    if value is not None and value.dtype == self._kind.dtype:
                        node.replace_input_with(index, self._in_full(value))
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and is_float(value):
                    node.replace_input_with(index, self._in_half(value))
            self._retype(node)

    def restore_outputs(self) -> None:
        """Cast outputs of the graph back to float32 under their old names."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == self._kind.dtype:
                full = self._in_full(value)
                full.name, value.name = value.name, f"{value.name}_{self._kind.short}"
                self._graph.outputs[index] = full

    def _in_half(self, value: ir.Value) -> ir.Value:
        if value not in self._half:
            array = constant_array(value)
            self._half[value] = (
                self._insert_cast(value, self._kind.dtype)
                if array is None
                else self._half_constant(value, array)
            )
        return self._half[value]

    def _in_full(self, value: ir.Value) -> ir.Value:
        if value not in self._full:
            self._full[value] = self._insert_cast(value, ir.DataType.FLOAT)
        return self._full[value]

    def _insert_cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        suffix = self._kind.short if dtype == self._kind.dtype else "fp32"
        result = ir.Value(
            name=f"{value.name}_{suffix}", shape=value.shape, type=ir.TensorType(dtype)
        )
        cast = ir.Node(
            "",
            "Cast",
            inputs=[value],
            attributes=[ir.AttrInt64("to", int(dtype))],
            outputs=[result],
            name=f"cast_{result.name}",
        )
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        self.casts += 1
        return result

    def _half_constant(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        name, kind = value.name or "", self._kind
        array = self._fitted(name, array)
        largest = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
        if largest > kind.largest:
            raise StageError(
                f"weight `{name}` has {largest:g}, which is infinite in {kind.name} (at most "
                f"{kind.largest:g})",
                hint="use precision fp32 for this model",
            )
        half = array.astype(kind.array)
        self.vanished += int(np.count_nonzero(array)) - int(np.count_nonzero(half))
        result = ir.Value(
            name=f"{name}_{kind.short}", shape=value.shape, type=ir.TensorType(kind.dtype)
        )
        result.const_value = ir.tensor(half, name=result.name)
        self._graph.register_initializer(result)
        return result

    def _fitted(self, name: str, array: np.ndarray) -> np.ndarray:
        result = fitted(array, self._kind)
        if result is not array:
            self.clamped.append(name)
        return result

    def _retype(self, node: ir.Node) -> None:
        """Let a node write 16 bits where it wrote float32."""
        kind = self._kind
        for name, attribute in tuple(node.attributes.items()):
            if name in _TYPE_ATTRIBUTES and attribute.value == int(ir.DataType.FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(kind.dtype))
            elif attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == ir.DataType.FLOAT:
                    array = self._fitted(node.name or node.op_type, tensor.numpy())
                    half = array.astype(kind.array)
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(half))
        for value in node.outputs:
            if is_float(value):
                value.type = ir.TensorType(kind.dtype)
