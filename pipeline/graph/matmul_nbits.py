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
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.errors import StageError
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

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

BLOCKS: Final = (128, 64, 32, 16)
"""Tried in this order where one scale serves all inputs."""

SMALLEST_BLOCK: Final = 16
_BITS: Final[dict[np.dtype[Any], int]] = {
    np.dtype(ml_dtypes.int4): 4,
    np.dtype(ml_dtypes.uint4): 4,
    np.dtype(np.int8): 8,
}
_WITH_ZERO_POINTS: Final = np.dtype(ml_dtypes.uint4)
_MIDDLE: Final = {4: 8, 8: 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight as `MatMulNBits` takes it.

    Attributes:
        values: uint8 (outputs, blocks, bytes of a block).
        scales: float32 (outputs, blocks).
        bits: 4 or 8.
        block_size: Inputs that share a scale.
        zero_points: uint8 (outputs, bytes of their blocks); None where the middle stands for zero.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    block_size: int
    zero_points: NDArray[np.uint8] | None = None

    @property
    def outputs(self) -> int:
        """Of the layer."""
        return int(self.values.shape[0])

    @property
    def inputs(self) -> int:
        """Of the layer."""
        return int(self.values.shape[1]) * self.block_size


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


def pack_products(model: ir.Model, *, accuracy_level: int) -> PackReport:
    """Rewrites every product of the main graph that fulfils the conditions, in place.

    Args:
        model: As `quantize_weights` writes it.
        accuracy_level: Of `MatMulNBits`: 0 keeps activations in float32, 4 lets the kernel round them
            to 8 bits, block by block.

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
                made[dequantize] = _pack(product, editor, report)
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


def _pack(product: _Product, editor: GraphEditor, report: PackReport) -> _Stored:
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
    )
    report.compared += require_equal(
        packed,
        integers,
        scales,
        output_axis=product.output_axis,
        block_size=block_size,
        zero_points=zeros,
    )
    report.weights += 1
    name = stored.name or "weight"
    values = editor.store(f"{name}_packed", packed.values)
    steps = editor.store(f"{name}_scales", packed.scales)
    middles = None
    if packed.zero_points is not None:
        middles = editor.store(f"{name}_zero_points", packed.zero_points)
    return _Stored(packed=packed, constants=(values, steps, middles))


def pack_weight(
    integers: NDArray[Any],
    scales: NDArray[Any],
    *,
    output_axis: int,
    block_size: int | None,
    zero_points: NDArray[Any] | None = None,
) -> PackedWeight:
    """Another layout of the same integers and scales; see the module.

    Args:
        integers: int4, uint4 or int8, two axes.
        scales: float32, as DequantizeLinear takes them.
        output_axis: Of the integers, the axis of the outputs.
        block_size: Inputs that share a scale; None: all, and `scales` is (outputs,).
        zero_points: Of the type of the integers and the shape of `scales`; None: zero.

    Raises:
        Refused: when the operator does not take it.
    """
    if integers.ndim != 2:
        raise Refused(f"its weight has {integers.ndim} axes, not 2")
    bits = _BITS.get(integers.dtype)
    if bits is None:
        raise Refused(f"its weight is {integers.dtype}, not int4, uint4 or int8")
    if scales.dtype != np.float32:
        raise Refused(f"its scales are {scales.dtype}, not float32")
    is_unsigned = integers.dtype == _WITH_ZERO_POINTS
    if not is_unsigned and zero_points is not None and zero_points.any():
        raise Refused(f"its weight is {integers.dtype} and has zero points")
    rows = np.moveaxis(integers, output_axis, 0)
    outputs, inputs = rows.shape
    size = block_size
    if size is None:
        size = next((each for each in BLOCKS if inputs % each == 0), 0)

    def for_blocks(each: NDArray[Any]) -> NDArray[Any]:
        if block_size is not None:
            return np.moveaxis(each, output_axis, 0)
        return np.repeat(each.reshape(-1, 1), inputs // size if size else 1, axis=1)

    if size < SMALLEST_BLOCK or size & (size - 1) or inputs % size:
        raise Refused(f"its {inputs} inputs are no whole number of blocks of 16, 32, 64, ...")
    if is_unsigned:
        shifted: NDArray[np.uint8] = rows.astype(np.uint8)
    else:
        shifted = (rows.astype(np.int16) + _MIDDLE[bits]).astype(np.uint8)
    if bits == 4:
        shifted = _pairs(shifted)
    blocks = inputs // size
    zeros = None
    if is_unsigned:
        given = np.zeros(scales.shape, np.uint8) if zero_points is None else zero_points
        zeros = _pairs(for_blocks(given.astype(np.uint8)))
    return PackedWeight(
        values=np.ascontiguousarray(shifted.reshape(outputs, blocks, size * bits // 8)),
        scales=np.ascontiguousarray(for_blocks(scales).reshape(outputs, blocks), np.float32),
        bits=bits,
        block_size=size,
        zero_points=zeros,
    )


def _pairs(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each row two numbers to a byte, the first in its lower half; the last may stand alone."""
    low, high = numbers[:, 0::2].copy(), numbers[:, 1::2]
    low[:, : high.shape[1]] |= np.left_shift(high, 4, dtype=np.uint8)
    return low


def _apart(pairs: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """What `_pairs` put together, `count` numbers of each row."""
    both = np.stack([pairs & 15, pairs >> 4], axis=-1)
    return both.reshape(len(pairs), -1)[:, :count]


def unpack_weight(packed: PackedWeight) -> NDArray[np.float32]:
    """The values that `MatMulNBits` multiplies with, float32 (outputs, inputs)."""
    stored = packed.values.reshape(packed.outputs, -1)
    if packed.bits == 4:
        stored = _apart(stored, packed.inputs)
    integers = stored.astype(np.float32)
    if packed.zero_points is None:
        integers -= np.float32(_MIDDLE[packed.bits])
    else:
        zeros = _apart(packed.zero_points, packed.scales.shape[1]).astype(np.float32)
        integers -= np.repeat(zeros, packed.block_size, axis=1)
    result: NDArray[np.float32] = integers * np.repeat(packed.scales, packed.block_size, axis=1)
    return result


def require_equal(
    packed: PackedWeight,
    integers: NDArray[Any],
    scales: NDArray[Any],
    *,
    output_axis: int,
    block_size: int | None,
    zero_points: NDArray[Any] | None = None,
) -> int:
    """Compare what was packed with what DequantizeLinear makes of a weight; how many values.

    Raises:
        StageError: when one differs in one bit.
    """
    rows = np.moveaxis(integers, output_axis, 0).astype(np.float32)

    def spread(each: NDArray[Any]) -> NDArray[np.float32]:
        floats = each.astype(np.float32)
        if block_size is None:
            return floats.reshape(-1, 1)
        return np.repeat(np.moveaxis(floats, output_axis, 0), block_size, axis=1)

    if zero_points is not None:
        rows -= spread(zero_points)
    rows *= spread(scales)
    found = unpack_weight(packed)
    if found.shape != rows.shape or not np.array_equal(
        found.view(np.uint32), (rows + np.float32(0)).view(np.uint32)
    ):
        raise StageError("a weight is not what it was after it was packed for MatMulNBits")
    return int(rows.size)


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
