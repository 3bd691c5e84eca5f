"""Static quantisation: quantise/dequantise pairs around the layers with weights.

    x W  ->  DequantizeLinear(QuantizeLinear(x)) DequantizeLinear(W8)

The graph stays a float graph that says where integers may be used; a runtime fuses the pairs into
integer kernels. Only the layers themselves read the pairs: whatever else reads `x`, such as the
residual connection, keeps the unrounded numbers. Where pairs go is `pipeline.graph.qdq_placements`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.errors import QuantizationError
from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    input_of,
)
from pipeline.graph.kept_float import find_kept_float
from pipeline.graph.quantization_result import LayerRecord, QuantizationResult
from pipeline.graph.quantized_embeddings import quantize_embeddings
from pipeline.graph.quantized_weights import (
    FLOAT8,
    FLOAT8_MAX,
    WeightType,
    quantize_weight,
    rounded_scale,
)
from pipeline.graph.weighted_layers import (
    WeightedLayer,
    find_weighted_layers,
    value_classes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.calibration.methods import Range
    from pipeline.graph.qdq_placements import EightBits, OperatorRule, Placement

LARGEST_BIAS: Final = 2**30
"""Of a bias in int32. The other half is for the sum of products it is added to."""

SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)

FIRST_OPSET_WITH_HALF: Final = 19
"""QuantizeLinear takes float16 and bfloat16, and gives float8, since then."""

_NUMPY: Final[Mapping[ir.DataType, np.dtype[np.floating[Any]]]] = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_IR: Final = {
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "float8": ir.DataType.FLOAT8E4M3FN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqOptions:
    """As `pipeline.stages.quantize_static.QuantizeStaticConfig`, which explains each.

    Attributes:
        given_back: Names of more layers that stay float, chosen by a repair.
    """

    per_channel: bool
    activation_dtype: EightBits
    weight_dtype: EightBits
    reduce_range: bool
    quantize_embeddings: bool
    op_types: tuple[str, ...]
    exclude_nodes: tuple[str, ...]
    given_back: frozenset[str] = frozenset()


def quantize_static(
    model: ir.Model,
    placement: Placement,
    ranges: Mapping[str, Range],
    options: QdqOptions,
) -> QuantizationResult:
    """Quantises the layers of a model's main graph in place.

    Args:
        model: Opset 13 or later; 19 or later when it holds 16 bits, or float8 is asked for.
        placement: Where pairs go.
        ranges: Name of a value -> its range; the graph's own names, or those of values with the
            same numbers.
        options: How to quantise; types that the placement allows.

    Raises:
        QuantizationError: when a tensor has no range, a pattern matches nothing, or the opset is
            too old; the model may be half changed then.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    layers = find_weighted_layers(model.graph)
    reasons = static_reasons(layers, placement, options)
    record = LayerRecord(layers, reasons)
    chosen = [layer for layer in layers if layer not in reasons]
    _require_opset(model, chosen, options)
    # All ranges are found before the first edit, which takes values out of the graph.
    finder = _RangeFinder(model.graph, ranges)
    work = [finder.plan(layer, placement.operators[layer.node.op_type]) for layer in chosen]
    writer = _Writer(model.graph, options)
    for planned in work:
        writer.quantize(planned)
    # What read the tables of tied weights is gone before the tables' readers are counted.
    RemoveUnusedNodesPass()(model)
    embeddings: tuple[str, ...] = ()
    if options.quantize_embeddings:
        embeddings = quantize_embeddings(model.graph, GraphEditor(model.graph))
        RemoveUnusedNodesPass()(model)
    return record.result(embeddings)


def static_reasons(
    layers: Sequence[WeightedLayer], placement: Placement, options: QdqOptions
) -> dict[WeightedLayer, str]:
    """Layer -> why it stays float, for those that do.

    Raises:
        QuantizationError: for a name or a pattern that matches no layer with a weight.
    """
    named = find_kept_float(layers, options.exclude_nodes, options.given_back)
    reasons = {}
    for layer in layers:
        operator = layer.node.op_type
        reason = layer.reason
        if not reason and operator not in options.op_types:
            reason = f"{operator} is not among op_types"
        if not reason:
            reason = named.get(layer, "")
        if not reason and placement.operators[operator].quantizes_bias:
            reason = _bias_obstacle(layer)
        if reason:
            reasons[layer] = reason
    return reasons


def _bias_obstacle(layer: WeightedLayer) -> str:
    """Why the bias of a layer cannot be an integer of the product's scale, or nothing."""
    bias, beta = input_of(layer.node, 2), layer.node.attributes.get("beta")
    if bias is None:
        return ""
    alpha = layer.node.attributes.get("alpha")
    if alpha is not None and alpha.as_float() != 1.0:
        return "it scales its product but not its bias"
    if bias.const_value is None:
        return "its bias is computed"
    if len(bias.const_value.shape) != 1:
        return f"its bias has {len(bias.const_value.shape)} axes, not 1"
    if layer.weight is not None and layer.weight.const_value is not None:
        channels = layer.weight.const_value.shape[layer.axis]
        if bias.const_value.shape[0] != channels:
            return f"its bias is not one number for each of {channels} outputs"
    return "" if beta is None or beta.as_float() == 1.0 else "it scales its bias"


def _require_opset(model: ir.Model, layers: Sequence[WeightedLayer], options: QdqOptions) -> None:
    opset = model.opset_imports[""]
    kinds = {layer.weight.dtype for layer in layers if layer.weight is not None}
    halves = [kind for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) if kind in kinds]
    if opset < FIRST_OPSET_WITH_HALF and (halves or options.weight_dtype == "float8"):
        name = halves[0].name.lower() if halves else ""
        what = f"{name} cannot be quantised" if name else "there is no float8"
        raise QuantizationError(
            f"{what} in opset {opset}, only since {FIRST_OPSET_WITH_HALF}",
            hint=f"set `export.opset` to {FIRST_OPSET_WITH_HALF} or more",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlannedLayer:
    """A layer that will be quantised, with the ranges it needs."""

    layer: WeightedLayer
    rule: OperatorRule
    activation: Range
    result: Range | None


class _RangeFinder:
    """Finds the range of a value under its own name or that of a value with the same numbers."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Range]) -> None:
        self._classes = value_classes(graph)
        self._ranges = ranges

    def plan(self, layer: WeightedLayer, rule: OperatorRule) -> _PlannedLayer:
        if layer.activation is None:
            raise ValueError(f"`{layer.name}` has no weight")
        return _PlannedLayer(
            layer=layer,
            rule=rule,
            activation=self._find(layer.activation, f"read by `{layer.name}`"),
            result=self._find(layer.result, f"the result of `{layer.name}`")
            if rule.quantizes_result
            else None,
        )

    def _find(self, value: ir.Value, role: str) -> Range:
        others = sorted(other.name or "" for other in self._classes[value])
        for name in (value.name or "", *others):
            if name in self._ranges:
                return self._ranges[name]
        raise QuantizationError(
            f"tensor `{value.name}`, {role}, has no range",
            hint="calibrate the graph that this one was made from, before it was fused or cast",
        )


class _Writer:
    """Writes the pairs; activations and weights that are shared are quantised once."""

    def __init__(self, graph: ir.Graph, options: QdqOptions) -> None:
        self._graph = graph
        self._editor = GraphEditor(graph)
        self._options = options
        self._type = WeightType(dtype=options.weight_dtype, bits=7 if options.reduce_range else 8)
        self._pairs: dict[ir.Value, ir.Value] = {}
        self._scales: dict[ir.Value, NDArray[np.floating[Any]]] = {}
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}

    def quantize(self, planned: _PlannedLayer) -> None:
        """Lets one layer read 8-bit numbers, and write them where the rule says so."""
        layer, rule = planned.layer, planned.rule
        # The result is asked for before the nodes around it change.
        result = layer.result
        node, weight = layer.node, layer.weight
        activation = input_of(node, 0)  # not `layer.activation`, which may have been replaced
        if activation is None or weight is None:
            raise ValueError(f"`{layer.name}` has no weight")
        kind = weight.dtype or ir.DataType.FLOAT
        source = self._activation(activation, planned.activation, node, kind)
        bias = input_of(node, 2) if rule.quantizes_bias else None
        least = None if bias is None else self._least_scale(bias, source)
        stored = self._weight(weight, layer.axis, node, least)
        node.replace_input_with(0, source)
        node.replace_input_with(1, stored)
        if bias is not None:
            scales = self._scales[source] * self._scales[stored]
            node.replace_input_with(2, self._bias(bias, scales, layer))
        if planned.result is not None:
            self._quantize_result(result, planned.result, kind)

    def _activation(
        self, value: ir.Value, found: Range, before: ir.Node, kind: ir.DataType
    ) -> ir.Value:
        if value in self._scales:  # the pair behind another layer
            return value
        if value not in self._pairs:
            self._pairs[value] = self._pair(value, found, before, kind)
        return self._pairs[value]

    def _pair(
        self,
        value: ir.Value,
        found: Range,
        before: ir.Node,
        kind: ir.DataType,
        *,
        is_rectified: bool = False,
    ) -> ir.Value:
        """A pair that reads `value`, just before a node."""
        dtype = self._options.activation_dtype
        scale, zero_point = activation_scale(found, dtype, _NUMPY[kind], is_rectified=is_rectified)
        parameters = [
            self._editor.store(f"{value.name}_scale", scale),
            self._editor.store(f"{value.name}_zero_point", zero_point),
        ]
        quantized = self._editor.insert(
            before,
            "QuantizeLinear",
            [value, *parameters],
            output=f"{value.name}_quantized",
            dtype=_IR[dtype],
        )
        result = self._editor.insert(
            before,
            "DequantizeLinear",
            [quantized, *parameters],
            output=f"{value.name}_dequantized",
            dtype=kind,
        )
        quantized.shape = result.shape = value.shape
        self._scales[result] = scale
        return result

    def _weight(
        self,
        value: ir.Value,
        axis: int,
        before: ir.Node,
        least: NDArray[np.floating[Any]] | None,
    ) -> ir.Value:
        """The dequantised weight; layers share it unless one needs larger scales for its bias."""
        key = (value, axis)
        if key not in self._weights:
            self._weights[key] = self._write_weight(value, axis, before, None)
        shared = self._weights[key]
        if least is None or bool(np.all(self._scales[shared] >= least)):
            return shared
        return self._write_weight(value, axis, before, least)

    def _write_weight(
        self,
        value: ir.Value,
        axis: int,
        before: ir.Node,
        least: NDArray[np.floating[Any]] | None,
    ) -> ir.Value:
        if value.const_value is None:
            raise ValueError(f"`{value.name}` is not constant")
        kind = value.dtype or ir.DataType.FLOAT
        along = axis if self._options.per_channel else None
        made = quantize_weight(
            value.const_value.numpy(),
            self._type,
            axis=along,
            scale_dtype=_NUMPY[kind],
            least_scale=least,
        )
        inputs = [
            self._editor.store(f"{value.name}_quantized", made.values),
            self._editor.store(f"{value.name}_scale", made.scale),
            self._editor.store(f"{value.name}_zero_point", made.zero_point),
        ]
        attributes = {} if along is None else {"axis": along}
        name = f"{value.name}_dequantized"
        result = self._editor.insert(
            before, "DequantizeLinear", inputs, output=name, dtype=kind, attributes=attributes
        )
        result.shape = value.shape
        self._scales[result] = made.scale
        return result

    def _least_scale(self, bias: ir.Value, source: ir.Value) -> NDArray[np.floating[Any]]:
        """Scales of a weight below which the bias, in units of the products, has too large integers.

        A channel of tiny weights would lose its bias otherwise; beside it they count for nothing.

        Returns:
            float64 (channels,), or () for one scale.
        """
        if bias.const_value is None:
            raise ValueError(f"`{bias.name}` is computed")
        sizes = np.abs(bias.const_value.numpy().astype(np.float64))
        least = sizes / LARGEST_BIAS / self._scales[source].astype(np.float64)
        # What rounding to float32 loses must not matter.
        least = least * (1 + 1e-6)
        return least if self._options.per_channel else least.max()

    def _bias(
        self, bias: ir.Value, scales: NDArray[np.floating[Any]], layer: WeightedLayer
    ) -> ir.Value:
        """A constant bias in int32, in units of the products' scales."""
        if bias.const_value is None:
            raise ValueError(f"`{bias.name}` is computed")
        values = bias.const_value.numpy().astype(np.float64)
        scale = np.broadcast_to(scales, values.shape).astype(np.float32)
        scale = np.maximum(scale, np.float32(SMALLEST_NORMAL))  # where the bias is as small
        integers = np.rint(values / scale).astype(np.int32)
        inputs = [
            self._editor.store(f"{bias.name}_quantized", integers),
            self._editor.store(f"{bias.name}_scale", scale),
        ]
        kind = bias.dtype or ir.DataType.FLOAT
        name = f"{bias.name}_dequantized"
        return self._editor.insert(
            layer.node, "DequantizeLinear", inputs, output=name, dtype=kind, attributes={"axis": 0}
        )

    def _quantize_result(self, value: ir.Value, found: Range, kind: ir.DataType) -> None:
        """A pair behind a layer; all that read its result read the pair."""
        producer = value.producer()
        if producer is None:
            raise ValueError(f"`{value.name}` is no result")
        readers, is_output = consumers(value), value.is_graph_output()
        # A Relu or Clip goes into the product only when integers end where it cuts.
        is_rectified = producer.op_type != "Conv"
        result = self._pair(value, found, producer, kind, is_rectified=is_rectified)
        pair = [node for node in consumers(value) if node not in readers]
        pair += list(consumers(pair[0].outputs[0]))
        # Written before the producer, where nodes can be put by name; they belong behind it.
        self._graph.remove(pair)
        self._graph.insert_after(producer, pair)
        for reader in readers:
            for index, source in enumerate(reader.inputs):
                if source is value:
                    reader.replace_input_with(index, result)
        if is_output:
            name = value.name
            value.name, result.name = f"{name}_unrounded", name
            outputs = self._graph.outputs
            for index, output in enumerate(outputs):
                if output is value:
                    outputs[index] = result


def activation_scale(
    found: Range,
    dtype: EightBits,
    scale_dtype: np.dtype[np.floating[Any]],
    *,
    is_rectified: bool = False,
) -> tuple[NDArray[np.floating[Any]], NDArray[Any]]:
    """Scale and zero point of an activation, both of shape (); the scale is never zero.

    float8: `magnitude / 448` and 0, which is the largest number that it has. int8: `magnitude / 127` and 0; rectified numbers, which have no negative ones among them, take
    all 255 steps from the zero point -128. uint8: 255 steps from `low` to `high`, of which one is
    at 0.
    """
    if dtype == "float8":
        width = max(found.magnitude / FLOAT8_MAX, 0.0)
        scale = rounded_scale(
            np.array(width if width >= SMALLEST_NORMAL else 1 / FLOAT8_MAX), scale_dtype
        )
        return scale, np.zeros((), dtype=FLOAT8)
    is_symmetric = dtype == "int8" and not is_rectified
    width = found.magnitude / 127 if is_symmetric else (found.high - found.low) / 255
    # Of nothing but zeros, or nearly so, any scale would do for the numbers; but a bias is in units of
    # it, and runtimes may take the smallest ones for zero. So as if there were numbers up to 1.
    scale = rounded_scale(np.array(width if width >= SMALLEST_NORMAL else 1 / 255), scale_dtype)
    if is_symmetric:
        return scale, np.array(0, dtype=np.int8)
    steps = np.clip(np.rint(-found.low / scale.astype(np.float64)), 0, 255)
    if dtype == "int8":
        return scale, np.array(steps - 128, dtype=np.int8)
    return scale, np.array(steps, dtype=np.uint8)
