"""Dynamic quantisation: 8-bit weights, activations quantised at run time with a scale a batch.

    x W  ->  Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * (x's scale * W8's scales)

The nodes are those that `onnxruntime.quantization.quantize_dynamic` writes and that ONNX Runtime
turns into one kernel when it loads the model. That tool is not used itself: it leaves out what it
cannot do without a word, drops inputs of operators it knows halfway (the `attention_bias` of
`Attention`, 1.31.1), writes files beside its input, and loops over columns in Python. Here every
layer is either rewritten or named with the reason. Numbers so large that they would coarsen all
others of their tensor are dealt with first: `outlier_neurons` and `outlier_channels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    GraphEditor,
    input_of,
    int_attribute,
    node_name,
    replace_value,
)
from pipeline.graph.kept_float import find_kept_float
from pipeline.graph.outlier_channels import DampedChannels, damp_outlier_channels
from pipeline.graph.outlier_neurons import FloatNeurons, split_outlier_neurons
from pipeline.graph.quantization_result import LayerRecord, QuantizationResult
from pipeline.graph.quantized_embeddings import quantize_embeddings
from pipeline.graph.quantized_weights import QuantizedWeight, WeightType, quantize_columns
from pipeline.graph.weighted_layers import WeightedLayer, find_weighted_layers, gemm_obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_FLOAT: Final = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """As `pipeline.stages.quantize_dynamic.QuantizeDynamicConfig`, which explains each.

    Attributes:
        given_back: Names of more layers that stay float, chosen by a repair.
    """

    per_channel: bool
    weight_dtype: Literal["int8", "uint8"]
    reduce_range: bool
    quantize_embeddings: bool
    treat_outliers: bool
    exclude_nodes: tuple[str, ...] = ()
    given_back: frozenset[str] = frozenset()


def quantize_dynamic(model: ir.Model, options: QuantizationOptions) -> QuantizationResult:
    """Quantises the linear layers of a model's main graph in place.

    Args:
        model: Opset 13 or later; float32.
        options: How to quantise.

    Raises:
        QuantizationError: when a pattern matches nothing; the model is as it was then.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    layers = find_weighted_layers(model.graph)
    named = find_kept_float(layers, options.exclude_nodes, options.given_back)
    kept = {layer.name: reason for layer, reason in named.items()}
    reasons = dynamic_reasons(layers, kept)
    record = LayerRecord(layers, reasons)
    neurons: tuple[FloatNeurons, ...] = ()
    channels: tuple[DampedChannels, ...] = ()
    if options.treat_outliers:
        neurons = split_outlier_neurons(model.graph, kept_float=kept)
        RemoveUnusedNodesPass()(model)
        # Afterwards: what belongs to outliers among the neurons is gone from the weights then.
        channels = damp_outlier_channels(model.graph)
        layers = find_weighted_layers(model.graph)
        reasons = dynamic_reasons(layers, kept)
    floats = {node for each in neurons for node in each.nodes}
    writer = _Writer(model.graph, options)
    for layer in layers:
        if layer not in reasons and layer.node not in floats:
            writer.rewrite_product(layer)
    # What read the tables of tied weights is gone before the tables' readers are counted.
    RemoveUnusedNodesPass()(model)
    embeddings: tuple[str, ...] = ()
    if options.quantize_embeddings:
        embeddings = quantize_embeddings(model.graph, GraphEditor(model.graph))
        RemoveUnusedNodesPass()(model)
    return record.result(embeddings, neurons, channels)


def dynamic_reasons(
    layers: Sequence[WeightedLayer], kept: Mapping[str, str]
) -> dict[WeightedLayer, str]:
    """Layer -> why it stays float, for those that do; `kept` says it of those that were named."""
    reasons = {layer: layer.reason or kept.get(layer.name) or _obstacle(layer) for layer in layers}
    return {layer: reason for layer, reason in reasons.items() if reason}


def _obstacle(layer: WeightedLayer) -> str:
    if layer.node.op_type == "Conv":
        return "convolutions are quantised statically only"
    if layer.weight is not None and layer.weight.dtype != _FLOAT:
        return "its weight is FLOAT16, not FLOAT"
    return gemm_obstacle(layer.node)


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

    def rewrite_product(self, layer: WeightedLayer) -> None:
        """Puts an integer product in the place of a MatMul or Gemm."""
        node, source, matrix = layer.node, input_of(layer.node, 0), layer.weight
        if source is None or matrix is None:
            raise ValueError(f"`{node_name(node)}` has no weight")
        left = self._activation(source, node)
        right = self._weight(matrix, is_transposed=bool(int_attribute(node, "transB", 0)))
        name = node_name(node)
        product = self._editor.insert(
            node,
            "MatMulInteger",
            [left.quantized, right.quantized, left.zero_point, right.zero_point],
            output=f"{name}_integer",
            dtype=ir.DataType.INT32,
        )
        result = self._editor.insert(
            node, "Cast", [product], output=f"{name}_float", attributes={"to": int(_FLOAT)}
        )
        scale = self._editor.insert(node, "Mul", [left.scale, right.scale], output=f"{name}_scale")
        result = self._editor.insert(node, "Mul", [result, scale], output=f"{name}_scaled")
        bias = input_of(node, 2)
        if bias is not None:
            result = self._editor.insert(node, "Add", [result, bias], output=f"{name}_biased")
        replace_value(node.outputs[0], result)

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
            quantized=self._editor.store(f"{name}_quantized", made.values),
            scale=self._editor.store(f"{name}_scale", made.scale),
            zero_point=self._editor.store(f"{name}_zero_point", made.zero_point),
        )
