"""Dynamic quantisation: 8-bit weights, activations quantised at run time with a scale a batch.

    x W  ->  Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * (x's scale * W8's scales)

The nodes are those that `onnxruntime.quantization.quantize_dynamic` writes and that ONNX Runtime
turns into one kernel when it loads the model. That tool is not used itself: it leaves out what it
cannot do without a word, drops inputs of operators it knows halfway (the `attention_bias` of
`Attention`, 1.31.1), writes files beside its input, and loops over columns in Python. Here every
layer is either rewritten or named with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.quantized_weights import (
    QuantizedWeight,
    WeightType,
    quantize_columns,
    quantize_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.hashing import JSON

_FLOAT: Final = ir.DataType.FLOAT

SMALLEST_EMBEDDING_BYTES: Final = 1 << 16
"""Smaller tables stay float: the nodes that widen a row cost more than they save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """As `pipeline.stages.quantize_dynamic.QuantizeDynamicConfig`, which explains each."""

    per_channel: bool
    weight_dtype: Literal["int8", "uint8"]
    reduce_range: bool
    quantize_embeddings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """A MatMul or Gemm.

    Attributes:
        node: The node.
        weight: Its constant factor; None when both factors are computed.
        reason: Why it cannot be quantised; empty when it can.
    """

    node: ir.Node
    weight: ir.Value | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationResult:
    """What was quantised.

    Attributes:
        quantized: Names of the linear layers that are now integer products.
        embeddings: Names of the lookups whose table is now 8 bits wide.
        kept_float: (name, reason) of every other matrix product of the graph.
        weight_coverage: Share of the bytes of all linear layers' weights that was quantised, a
            shared weight counted once; embeddings are no linear layers. Zero without any.
        layer_coverage: Share of the linear layers (products with a weight) that was quantised.
    """

    quantized: tuple[str, ...]
    embeddings: tuple[str, ...]
    kept_float: tuple[tuple[str, str], ...]
    weight_coverage: float
    layer_coverage: float

    def as_json(self, size_ratio: float) -> dict[str, JSON]:
        """The facts of the stage.

        Args:
            size_ratio: Bytes of the model after, over before.
        """
        return {
            "quantized": list(self.quantized),
            "quantized_embeddings": list(self.embeddings),
            "kept_float": [{"node": node, "reason": reason} for node, reason in self.kept_float],
            "coverage": {
                "quantized_weights": self.weight_coverage,
                "quantized_matmuls": self.layer_coverage,
                "size_ratio": size_ratio,
            },
        }


def quantize_dynamic(model: ir.Model, options: QuantizationOptions) -> QuantizationResult:
    """Quantises the linear layers of a model's main graph in place.

    Args:
        model: Opset 13 or later; float32.
        options: How to quantise.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    layers = find_linear_layers(model.graph)
    # Names and sizes are taken now: the nodes are gone afterwards.
    names = [node_name(layer.node) for layer in layers]
    sizes = {layer.weight: _size_bytes(layer.weight) for layer in layers if layer.weight}
    kept_weights = {layer.weight for layer in layers if layer.reason}
    writer = _Writer(model.graph, options)
    for layer in layers:
        if not layer.reason:
            writer.rewrite_product(layer)
    # What read the tables of tied weights is gone before the tables' readers are counted.
    RemoveUnusedNodesPass()(model)
    embeddings = writer.rewrite_embeddings() if options.quantize_embeddings else ()
    RemoveUnusedNodesPass()(model)
    done = sum(size for weight, size in sizes.items() if weight not in kept_weights)
    total = sum(sizes.values())
    pairs = list(zip(names, layers, strict=True))
    with_weight = sum(layer.weight is not None for layer in layers)
    quantized = tuple(name for name, layer in pairs if not layer.reason)
    return QuantizationResult(
        quantized=quantized,
        embeddings=embeddings,
        kept_float=tuple((name, layer.reason) for name, layer in pairs if layer.reason),
        weight_coverage=done / total if total else 0.0,
        layer_coverage=len(quantized) / with_weight if with_weight else 0.0,
    )


def find_linear_layers(graph: ir.Graph) -> tuple[LinearLayer, ...]:
    """Every MatMul and Gemm of a graph, in its order; subgraphs are not looked into."""
    return tuple(_linear_layer(node) for node in graph if is_standard(node, "MatMul", "Gemm"))


def _linear_layer(node: ir.Node) -> LinearLayer:
    left, right = node.inputs[:2]
    if right is not None and right.const_value is not None:
        return LinearLayer(node=node, weight=right, reason=_obstacle(node, right))
    if left is not None and left.const_value is not None:
        return LinearLayer(node=node, weight=left, reason="its constant is the left factor")
    return LinearLayer(node=node, weight=None, reason="both factors are computed")


def _obstacle(node: ir.Node, weight: ir.Value) -> str:
    """Why a layer cannot be quantised, or nothing."""
    tensor = weight.const_value
    if tensor is None or tensor.dtype != _FLOAT:
        return f"its weight is {'' if tensor is None else tensor.dtype.name}, not FLOAT"
    if len(tensor.shape) != 2:
        return f"its weight has {len(tensor.shape)} axes, not 2"
    if weight.is_graph_input():
        return "its weight can be replaced by the caller"
    if node.op_type == "Gemm":
        factors = [node.attributes.get(name) for name in ("alpha", "beta")]
        scales = any(factor is not None and factor.as_float() != 1.0 for factor in factors)
        if scales or int_attribute(node, "transA", 0):
            return "it scales or transposes its input"
    return ""


def _size_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


@dataclass(frozen=True, slots=True)
class _Activation:
    """A tensor quantised at run time: uint8, its scale and its zero point."""

    quantized: ir.Value
    scale: ir.Value
    zero_point: ir.Value


@dataclass(frozen=True, slots=True)
class _Weight:
    """A constant matrix in 8 bits, with one scale and zero point a column or for all of it."""

    quantized: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class _Writer:
    """Writes the integer nodes; activations and weights that are shared are quantised once."""

    def __init__(self, graph: ir.Graph, options: QuantizationOptions) -> None:
        self._graph = graph
        self._editor = GraphEditor(graph)
        self._options = options
        self._type = WeightType(dtype=options.weight_dtype, bits=7 if options.reduce_range else 8)
        self._activations: dict[ir.Value, _Activation] = {}
        self._weights: dict[tuple[ir.Value, bool], _Weight] = {}

    def rewrite_product(self, layer: LinearLayer) -> None:
        """Puts an integer product in the place of a MatMul or Gemm."""
        node, source, matrix = layer.node, input_of(layer.node, 0), layer.weight
        if source is None or matrix is None:
            raise ValueError(f"`{node_name(node)}` has no weight")
        left = self._activation(source, node)
        right = self._weight(matrix, is_transposed=bool(int_attribute(node, "transB", 0)))
        name = node_name(node)
        product = self._insert(
            node,
            "MatMulInteger",
            [left.quantized, right.quantized, left.zero_point, right.zero_point],
            f"{name}_integer",
            dtype=ir.DataType.INT32,
        )
        result = self._insert(
            node, "Cast", [product], f"{name}_float", attributes={"to": int(_FLOAT)}
        )
        scale = self._insert(node, "Mul", [left.scale, right.scale], f"{name}_scale")
        result = self._insert(node, "Mul", [result, scale], f"{name}_scaled")
        bias = input_of(node, 2)
        if bias is not None:
            result = self._insert(node, "Add", [result, bias], f"{name}_biased")
        replace_value(node.outputs[0], result)

    def rewrite_embeddings(self) -> tuple[str, ...]:
        """Stores the float tables that are looked up by row in 8 bits, with one scale a row."""
        lookups = [node for node in self._graph if _is_embedding(node)]
        for node in lookups:
            table, indices = node.inputs
            if table is None or table.const_value is None:
                raise ValueError(f"`{node_name(node)}` has no table")
            rows = quantize_rows(table.const_value.numpy())
            values = self._store(f"{table.name}_quantized", rows.values)
            scales = self._store(f"{table.name}_scale", rows.scale)
            name = node_name(node)
            row = self._insert(
                node, "Gather", [values, indices], f"{name}_row", dtype=ir.DataType.INT8
            )
            row = self._insert(
                node, "Cast", [row], f"{name}_float", attributes={"to": int(_FLOAT)}
            )
            scale = self._insert(node, "Gather", [scales, indices], f"{name}_scale")
            replace_value(
                node.outputs[0], self._insert(node, "Mul", [row, scale], f"{name}_scaled")
            )
        return tuple(node_name(node) for node in lookups)

    def _activation(self, value: ir.Value, before: ir.Node) -> _Activation:
        if value not in self._activations:
            names = [f"{value.name}_{part}" for part in ("quantized", "scale", "zero_point")]
            outputs = self._editor.insert_with_outputs(
                before, "DynamicQuantizeLinear", [value], outputs=names
            )
            for output, dtype in zip(
                outputs, (ir.DataType.UINT8, _FLOAT, ir.DataType.UINT8), strict=True
            ):
                output.dtype = dtype
            self._activations[value] = _Activation(*outputs)
        return self._activations[value]

    def _weight(self, value: ir.Value, *, is_transposed: bool) -> _Weight:
        key = (value, is_transposed)
        if key not in self._weights:
            if value.const_value is None:
                raise ValueError(f"`{value.name}` is not constant")
            matrix = value.const_value.numpy()
            made = quantize_columns(
                matrix.T if is_transposed else matrix,
                self._type,
                per_channel=self._options.per_channel,
            )
            self._weights[key] = self._store_weight(value.name or "weight", made)
        return self._weights[key]

    def _store_weight(self, name: str, made: QuantizedWeight) -> _Weight:
        return _Weight(
            quantized=self._store(f"{name}_quantized", made.values),
            scale=self._store(f"{name}_scale", made.scale),
            zero_point=self._store(f"{name}_zero_point", made.zero_point),
        )

    def _store(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        return self._editor.constant(self._editor.name(name), array)

    def _insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        *,
        attributes: dict[str, int] | None = None,
        dtype: ir.DataType = _FLOAT,
    ) -> ir.Value:
        return self._editor.insert(
            before, op_type, inputs, output=output, attributes=attributes, dtype=dtype
        )


def _is_embedding(node: ir.Node) -> bool:
    """Whether a node looks up rows of a constant float matrix by a graph input, such as token ids.

    Tables looked up by computed positions stay float: they are small, and may be the sines and
    cosines of a rotary embedding. So does a table that something else reads as well.
    """
    if not is_standard(node, "Gather") or int_attribute(node, "axis", 0) not in {0, -2}:
        return False
    table, indices = node.inputs
    if table is None or table.const_value is None or table.is_graph_input():
        return False
    is_matrix = table.const_value.dtype == _FLOAT and len(table.const_value.shape) == 2
    is_large = table.const_value.nbytes >= SMALLEST_EMBEDDING_BYTES
    is_own = not table.is_graph_output() and consumers(table) == (node,)
    return is_matrix and is_large and is_own and _is_given(indices)


def _is_given(value: ir.Value | None) -> bool:
    """Whether a value is an input of the graph, perhaps in another shape or integer type."""
    while value is not None and is_standard(
        value.producer(), "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"
    ):
        producer = value.producer()
        value = None if producer is None else input_of(producer, 0)
    return value is not None and value.is_graph_input()
