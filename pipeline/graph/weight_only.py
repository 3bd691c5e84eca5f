"""Weight-only quantisation: weights in 4 or 8 bits, and floats everywhere else.

    x W  ->  x DequantizeLinear(W4)

Symmetric, with zero point 0, which both ONNX Runtime and TensorRT take: the one makes a
`MatMulNBits` of it when it loads the graph, the other a product of floats and integers. The scale has
the type of the weight, so the same code serves float32, float16 and bfloat16 graphs. For ONNX Runtime
alone scales may be negative (see `weight_methods.base`), as those of its own quantiser are, and there are
4 bits with a zero point for each block (see `zero_points`), and NF4 in place of integers (see
`normal_floats`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.errors import QuantizationError
from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.fusions.matching import GraphEditor, node_name
from pipeline.graph.kept_float import find_kept_float
from pipeline.graph.large_weights import release_weight
from pipeline.graph.normal_floats import NormalFloatWriter
from pipeline.graph.opsets import raise_opset
from pipeline.graph.product_moments import Factors
from pipeline.graph.quantization_result import LayerRecord, QuantizationResult
from pipeline.graph.vocabulary import (
    TableForm,
    TableNumbers,
    is_lm_head,
    quantize_tables,
    tied_table,
)
from pipeline.graph.weight_methods.catalogue import METHODS
from pipeline.graph.weighted_layers import WeightedLayer, find_weighted_layers, gemm_obstacle
from pipeline.graph.zero_points import quantize_with_zero_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.calibration.moments import Moments
    from pipeline.graph.vocabulary import Width
    from pipeline.graph.weight_methods.base import Bits
    from pipeline.graph.weight_methods.compensation import Factor

_BLOCKS_OPSET: Final = 21
"""The first one with int4 and blocks."""

Numbers = Literal["integers", "nf4"]

_PLAIN_OPSET: Final = 19
"""The first one with scales in 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyRequest:
    """As `pipeline.stages.quantize_weights.WeightOnlyOptions`, which explains each."""

    bits: Bits
    block_size: int | None
    method: str
    op_types: tuple[str, ...]
    exclude_nodes: tuple[str, ...]
    wide: frozenset[str] = frozenset()
    """Names of layers that have 8 bits where the others have 4."""
    embeddings: Width = "float"
    lm_head: Width | None = None
    numbers: Numbers = "integers"
    symmetric: bool = True
    signed_scales: bool = False

    def bits_of(self, layer: WeightedLayer) -> Bits:
        """Of one layer's weight, when it is quantised."""
        if self.lm_head in {"int8", "int4"} and is_lm_head(layer):
            return 8 if self.lm_head == "int8" else 4
        return 8 if layer.name in self.wide else self.bits

    def has_zero_points(self, bits: Bits) -> bool:
        """Whether weights of so many bits have them; 8 bits never do."""
        return not self.symmetric and bits == 4

    def has_signs(self, bits: Bits) -> bool:
        """Whether scales of weights of so many bits may be negative; of 8 bits they never are."""
        return self.signed_scales and self.symmetric and bits == 4


def prepare(model: ir.Model, request: WeightOnlyRequest) -> tuple[WeightedLayer, ...]:
    """Everything that happens to a graph before its weights are touched; the layers it has then.

    Raises:
        StageError: when an operator would mean something else in the opset that is needed.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    is_short = 4 in {request.bits, *(4 for width in _widths(request) if width == "int4")}
    has_blocks = is_short or request.block_size is not None
    raise_opset(model, _BLOCKS_OPSET if has_blocks else _PLAIN_OPSET)
    return find_weighted_layers(model.graph)


def _widths(request: WeightOnlyRequest) -> tuple[Width | None, ...]:
    return (request.embeddings, request.lm_head)


def quantize_weights(
    model: ir.Model,
    request: WeightOnlyRequest,
    moments: Moments | None = None,
    *,
    threads: int = 1,
) -> QuantizationResult:
    """Quantises the weights of a model's main graph in place.

    Args:
        model: Any opset from which the needed one can be declared.
        request: How to quantise.
        moments: Of what goes into its products, for a calibrated method.
        threads: How many work at a time; the result is the same.

    Raises:
        QuantizationError: when a pattern matches nothing, or the moments of a product are missing.
        StageError: when an operator would mean something else in the opset that is needed.
    """
    layers = prepare(model, request)
    reasons = weight_only_reasons(layers, request)
    _require_known(request.wide, layers, reasons)
    # Before anything is edited: the table of embeddings shows which layer is the LM head.
    widths = {layer: request.bits_of(layer) for layer in layers if layer not in reasons}
    forms = table_forms(model.graph, widths, request)
    record = LayerRecord(layers, reasons)
    editor = GraphEditor(model.graph)
    factors = None
    if METHODS[request.method].is_calibrated:
        factors = Factors(model.graph, moments)
    made: dict[ir.Value, ir.Value] = {}
    writer = NormalFloatWriter(
        editor, block_size=request.block_size or 0, method=request.method, threads=threads
    )
    for layer in layers:
        weight = layer.weight
        if layer in reasons or weight is None:
            continue
        if request.numbers == "nf4":
            writer.write(layer)
            continue
        if weight not in made:
            factor = None if factors is None else factors.of(layer)
            asked = replace(request, bits=widths[layer])
            made[weight] = _dequantized(layer, weight, asked, editor, factor, threads)
        layer.node.replace_input_with(1, made[weight])
    ready = {
        name: _as_table(made[form.head.weight], form.head)
        for name, form in forms.items()
        if form.head is not None and form.head.weight is not None
    }
    embeddings = quantize_tables(model.graph, editor, request.embeddings, forms, ready)
    RemoveUnusedNodesPass()(model)
    sizes = {
        layer.weight: (bits, _elements(layer.weight))
        for layer, bits in widths.items()
        if layer.weight is not None
    }
    weights = sum(count for _, count in sizes.values())
    mean = sum(bits * count for bits, count in sizes.values()) / max(1, weights)
    return replace(record.result(embeddings=embeddings), bits_per_weight=mean)


def table_forms(
    graph: ir.Graph, widths: Mapping[WeightedLayer, Bits], request: WeightOnlyRequest
) -> dict[str, TableForm]:
    """Name of a table that is also an LM head -> how that is rounded, so that one copy can serve both.

    Tables have a form of their own where the head has other bits, NF4, one scale for each row, or
    integers that make up for each other's errors, which is good for its products alone.

    Args:
        graph: Before it is edited.
        widths: Layers that are quantised -> their bits.
        request: What was asked for.
    """
    is_alike = request.block_size and not METHODS[request.method].is_calibrated
    if request.embeddings != "int4" or request.numbers != "integers" or not is_alike:
        return {}
    found = {}
    for head, bits in widths.items():
        table = tied_table(graph, head) if bits == 4 and is_lm_head(head) else None
        if table is not None:
            found[table.name or ""] = TableForm(
                block_size=request.block_size or 0,
                method=request.method,
                has_zero_points=request.has_zero_points(4),
                has_signs=request.has_signs(4),
                head=head,
            )
    return found


def _as_table(dequantized: ir.Value, head: WeightedLayer) -> TableNumbers:
    """What is stored for an LM head, one row for each token.

    Taken over, not rounded again: sums in another order may choose another scale.
    """
    node = dequantized.producer()
    assert node is not None
    arrays = [
        np.ascontiguousarray(np.moveaxis(value.const_value.numpy(), head.axis, 0))
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    return TableNumbers(arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None)


def _elements(weight: ir.Value) -> int:
    return 0 if weight.shape is None else math.prod(weight.shape.numpy())


def _require_known(
    wide: frozenset[str], layers: Sequence[WeightedLayer], reasons: dict[WeightedLayer, str]
) -> None:
    unknown = wide - {layer.name for layer in layers if layer not in reasons}
    if unknown:
        raise QuantizationError(
            f"`{min(unknown)}` is to have 8 bits, and is no layer that is quantised"
        )


def weight_only_reasons(
    layers: Sequence[WeightedLayer], request: WeightOnlyRequest
) -> dict[WeightedLayer, str]:
    """Layer -> why it stays float, for those that do.

    Raises:
        QuantizationError: for a pattern that matches no layer with a weight.
    """
    named = find_kept_float(layers, request.exclude_nodes, ())
    reasons = {}
    for layer in layers:
        reason = layer.reason or _own_reason(layer, request) or named.get(layer, "")
        if not reason and request.lm_head == "float" and is_lm_head(layer):
            reason = "it is the LM head, which is to stay float"
        if reason:
            reasons[layer] = reason
    if request.lm_head is not None and not any(is_lm_head(layer) for layer in layers):
        raise QuantizationError(
            f"`lm_head` is to be {request.lm_head}, and no product with a constant weight makes "
            "`logits`, one for each row of a table of embeddings",
            hint="leave `lm_head` out",
        )
    return reasons | _shared_with_others(layers, reasons)


def _own_reason(layer: WeightedLayer, request: WeightOnlyRequest) -> str:
    operator, weight = layer.node.op_type, layer.weight
    if operator not in request.op_types:
        offered = {"MatMul", "Gemm"}
        rule = "is not among op_types" if operator in offered else "has no weight-only form"
        return f"{operator} {rule}"
    if weight is None or weight.const_value is None:
        return "it has no weight"
    if 0 in weight.const_value.shape:
        return "its weight has no elements"
    inputs = weight.const_value.shape.numpy()[input_axis(layer)]
    size = request.block_size
    if size is not None and inputs % size:
        # ONNX and ONNX Runtime take a last block that is shorter; the parser of TensorRT does not.
        return f"its {inputs} inputs are no whole number of blocks of {size}"
    if request.numbers == "nf4":
        is_float32 = weight.const_value.dtype == ir.DataType.FLOAT
        return gemm_obstacle(layer.node) if is_float32 else "products with NF4 are float32 alone"
    return ""


def input_axis(layer: WeightedLayer) -> int:
    """Of the weight, the axis along which inputs lie."""
    return 1 - layer.axis


def _shared_with_others(
    layers: Sequence[WeightedLayer], reasons: dict[WeightedLayer, str]
) -> dict[WeightedLayer, str]:
    """Layers that share a weight with something that needs it as it is.

    The float weight would have to be kept beside the integers, and the model would grow.
    """
    chosen = {layer.node: layer for layer in layers if layer not in reasons}
    found = {}
    for layer in chosen.values():
        weight = layer.weight
        if weight is None:
            continue
        if weight.is_graph_output():
            found[layer] = "its weight is an output of the graph"
        for reader, index in weight.uses():
            other = chosen.get(reader)
            if other is None or index != 1:
                found[layer] = f"its weight is also read by `{node_name(reader)}`, as floats"
            elif other.axis != layer.axis:
                found[layer] = (
                    f"its weight is also read by `{node_name(reader)}`, along its other axis"
                )
    return found


def _dequantized(
    layer: WeightedLayer,
    weight: ir.Value,
    request: WeightOnlyRequest,
    editor: GraphEditor,
    factor: Factor | None,
    threads: int,
) -> ir.Value:
    if weight.const_value is None:
        raise ValueError(f"`{weight.name}` is not constant")
    content, axis = weight.const_value.numpy(), input_axis(layer)
    zero_point = None
    if request.has_zero_points(request.bits):
        zeroed = quantize_with_zero_points(
            content,
            axis=axis,
            block_size=request.block_size,
            method=request.method,
            threads=threads,
        )
        values, scale, zero_point = zeroed.values, zeroed.scale, zeroed.zero_point
    else:
        made = quantize_blocks(
            content,
            axis=axis,
            bits=request.bits,
            block_size=request.block_size,
            method=request.method,
            factor=factor,
            threads=threads,
            has_signs=request.has_signs(request.bits),
        )
        values, scale = made.values, made.scale
    del content
    release_weight(weight.const_value)
    inputs = [
        editor.store(f"{weight.name}_quantized", values),
        editor.store(f"{weight.name}_scale", scale),
    ]
    if zero_point is not None:
        inputs.append(editor.store(f"{weight.name}_zero_point", zero_point))
    attributes = (
        {"axis": layer.axis}
        if request.block_size is None
        else {"axis": input_axis(layer), "block_size": request.block_size}
    )
    result = editor.insert(
        layer.node,
        "DequantizeLinear",
        inputs,
        output=f"{weight.name}_dequantized",
        attributes=attributes,
        dtype=weight.dtype or ir.DataType.FLOAT,
    )
    result.shape = weight.shape
    return result
