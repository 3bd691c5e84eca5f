"""Products with weights in 4 or 8 bits -> `com.microsoft.MatMulNBits`, the same integers and scales.

    x DequantizeLinear(W)                     ->  MatMulNBits(x, W, scales)
    Gemm(x, DequantizeLinear(W)) + b, alpha 1 ->  MatMulNBits(x, W, scales, b)

ONNX Runtime makes such operators of the form with DequantizeLinear when it loads a graph, each time, and
only of some: weights of 8 bits with one scale for each output stay products of floats. Here the
weights lie in the file as the kernel reads them, along the inputs of the layer:

- integers (outputs, blocks, bytes of a block), unsigned, the middle (8 or 128) standing for zero; of 4 bits
  the first of two lies in the lower half of a byte;
- scales (outputs, blocks), float32. One scale for each output is repeated for every block;
- zero points of uint4 weights (outputs, bytes of their blocks), two to a byte likewise.

Conditions: float32; symmetric, or in 4 bits with zero points; a block that is a power of two from 16 on and divides the inputs; two
axes; nothing but such products reads the weight. What does not fulfil them stays as it is, with the
reason. Every value is compared bit for bit with what DequantizeLinear gives.

Source: `MatMulNBits` in ONNX Runtime 1.31.1, docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.large_weights import release_weight
from pipeline.graph.packed_weight import PackedWeight, pack_weight, require_equal

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(slots=True, kw_only=True)
class PackReport:
    """What was rewritten.

    Attributes:
        outcome: Products rewritten, and those left with the reason.
        weights: Different weights packed.
        compared: Values compared bit for bit.
    """

    outcome: Outcome
    weights: int = 0
    compared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A product, the node that dequantises its weight, and what is added."""

    node: ir.Node
    dequantize: ir.Node
    output_axis: int
    bias: ir.Value | None


def pack_products(model: ir.Model, *, accuracy_level: int, threads: int = 1) -> PackReport:
    """Rewrites every product of the main graph that fulfils the conditions, in place.

    Args:
        model: As `quantize_weights` writes it.
        accuracy_level: Of `MatMulNBits`: 0 keeps activations in float32, 4 lets the kernel round them
            to 8 bits, block by block.
        threads: How many work at a time; the result is the same.

    Raises:
        StageError: when a packed value is not, bit for bit, what it was.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    report = PackReport(outcome=Outcome())
    editor = GraphEditor(graph)
    made: dict[ir.Node, _Stored] = {}
    refused: dict[ir.Node, str] = {}
    for node in [node for node in graph if is_standard(node, "MatMul", "Gemm")]:
        dequantize = _dequantizer(node)
        if dequantize is None:
            continue
        try:
            product = _read(node, dequantize, refused)
            if dequantize not in made:
                made[dequantize] = _pack(product, editor, report, threads)
        except Refused as refusal:
            refused[dequantize] = str(refusal)
            report.outcome.refused.append(Refusal(node=node_name(node), reason=str(refusal)))
            continue
        _write(product, made[dequantize], editor, accuracy_level)
        report.outcome.fired += 1
    RemoveUnusedNodesPass()(model)
    return report


def _dequantizer(node: ir.Node) -> ir.Node | None:
    weight = input_of(node, 1)
    source = None if weight is None else weight.producer()
    return source if is_standard(source, "DequantizeLinear") else None


def _read(node: ir.Node, dequantize: ir.Node, refused: dict[ir.Node, str]) -> _Product:
    axis = _output_axis(node)
    for reader, index in dequantize.outputs[0].uses():
        if not is_standard(reader, "MatMul", "Gemm") or index != 1:
            raise Refused(f"its weight is also read by `{node_name(reader)}`")
        if _output_axis(reader) != axis:
            raise Refused(
                f"its weight is also read by `{node_name(reader)}`, along its other axis"
            )
        _require_plain(reader)
    if dequantize in refused:
        raise Refused(refused[dequantize])
    return _Product(node=node, dequantize=dequantize, output_axis=axis, bias=input_of(node, 2))


def _output_axis(node: ir.Node) -> int:
    """Of the weight, the axis along which outputs lie."""
    return 0 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else 1


def _require_plain(node: ir.Node) -> None:
    """Requires a Gemm to be a product and a sum, with one number for each output."""
    if node.op_type == "MatMul":
        return
    factors = {name: node.attributes.get(name) for name in ("alpha", "beta")}
    if any(given is not None and given.as_float() != 1.0 for given in factors.values()):
        raise Refused("Gemm multiplies with alpha or beta")
    if int_attribute(node, "transA", 0):
        raise Refused("Gemm turns its input")
    bias = input_of(node, 2)
    if bias is not None and (bias.const_value is None or len(bias.const_value.shape) != 1):
        raise Refused("what Gemm adds is no constant of one axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A packed weight and its constants: integers, scales, and zero points or None."""

    packed: PackedWeight
    constants: tuple[ir.Value | None, ...]


def _pack(product: _Product, editor: GraphEditor, report: PackReport, threads: int) -> _Stored:
    dequantize = product.dequantize
    stored, scale, zero = (input_of(dequantize, index) for index in range(3))
    if stored is None or scale is None or stored.const_value is None or scale.const_value is None:
        raise Refused("its weight is not constant")
    if zero is not None and zero.const_value is None:
        raise Refused("its zero points are not constant")
    block_size = int_attribute(dequantize, "block_size", 0) or None
    axis = int_attribute(dequantize, "axis", 1) % max(1, len(stored.const_value.shape))
    if axis != (product.output_axis if block_size is None else 1 - product.output_axis):
        raise Refused("its scales lie along another axis than outputs or inputs")
    integers, scales = stored.const_value.numpy(), scale.const_value.numpy()
    zeros = None if zero is None or zero.const_value is None else zero.const_value.numpy()
    packed = pack_weight(
        integers,
        scales,
        output_axis=product.output_axis,
        block_size=block_size,
        zero_points=zeros,
        threads=threads,
    )
    report.compared += require_equal(
        packed,
        integers,
        scales,
        output_axis=product.output_axis,
        block_size=block_size,
        zero_points=zeros,
        threads=threads,
    )
    report.weights += 1
    # What was read is kept by its tensor, a byte for each integer of 4 bits, until it is let go.
    del integers, scales, zeros
    for value in (stored, scale, zero):
        release_weight(None if value is None else value.const_value)
    name = stored.name or "weight"
    values = editor.store(f"{name}_packed", packed.values)
    steps = editor.store(f"{name}_scales", packed.scales)
    middles = None
    if packed.zero_points is not None:
        middles = editor.store(f"{name}_zero_points", packed.zero_points)
    return _Stored(packed=packed, constants=(values, steps, middles))


def _write(
    product: _Product,
    made: _Stored,
    editor: GraphEditor,
    accuracy_level: int,
) -> None:
    packed, node = made.packed, product.node
    inputs: list[ir.Value | None] = [node.inputs[0], *made.constants]
    if product.bias is not None:
        inputs += [None, product.bias]
    while inputs[-1] is None:
        inputs.pop()
    output = node.outputs[0]
    result = editor.insert(
        node,
        "MatMulNBits",
        inputs,
        output=f"{output.name}_bits",
        attributes={
            "K": packed.inputs,
            "N": packed.outputs,
            "bits": packed.bits,
            "block_size": packed.block_size,
            "accuracy_level": accuracy_level,
        },
        domain=CONTRIB_DOMAIN,
    )
    result.shape, result.type = output.shape, output.type
    name = node.name
    replace_value(output, result)
    made_node = result.producer()
    graph = node.graph
    assert made_node is not None
    assert graph is not None
    graph.remove(node, safe=True)
    made_node.name = name
