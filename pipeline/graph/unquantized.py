"""Turns a quantised graph back into the float graph it stands for, and says what was stored in 8 bits.

    DequantizeLinear(QuantizeLinear(x))                              ->  x
    DequantizeLinear(W8)                                             ->  W
    Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * scales       ->  MatMul(x, W)
    Cast(Gather(table8, ids)) * Gather(scales, ids)                  ->  Gather(table, ids)
    GatherBlockQuantized(table4, ids, scales)                        ->  Gather(table, ids)
    MatMulBnb4(x, W4, scales)                                        ->  MatMul(x, W)

What is left is the *skeleton*: when nothing but numbers was rounded, it is the graph that was quantised,
node for node, with `W` and `table` to be filled in. A pattern that is only nearly one of these is left
as it is, and shows as a node that the float graph does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.normal_floats import NF4, OPERATOR, read_normal_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FLOAT: Final = ir.DataType.FLOAT
_DEFAULT_AXIS: Final = 1
"""Of DequantizeLinear, ONNX opset 24."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConstant:
    """A constant in fewer bits: `value = scale * (integer - zero_point)`.

    Attributes:
        name: Of the integers in the graph.
        values: int8, uint8 or int32.
        scale: Floating point, as it is stored.
        zero_point: None when it is left out, and counts as zero.
        axis: Of `values`, the one along which scales lie; None for one scale.
        block_size: How many values along `axis` share a scale; None when each index has its own.
        codebook: What the integers stand for, by integer; None when they stand for themselves.
    """

    name: str
    values: NDArray[Any]
    scale: NDArray[np.floating[Any]]
    zero_point: NDArray[Any] | None
    axis: int | None
    block_size: int | None = None
    codebook: NDArray[np.float32] | None = None

    def spread(self, parameter: NDArray[Any]) -> NDArray[Any]:
        """Scales or zero points in a shape that multiplies `values`."""
        if parameter.size == 1:
            return parameter.reshape(())
        if self.axis is None:
            return parameter
        if self.block_size is not None:
            whole = np.repeat(parameter, self.block_size, axis=self.axis)
            # The last block may be shorter.
            return whole.take(range(self.values.shape[self.axis]), axis=self.axis, mode="clip")
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return parameter.reshape(shape)

    def dequantized(self) -> NDArray[np.float32]:
        """float32, the shape of `values`.

        Raises:
            ValueError: when the number of scales does not fit.
        """
        numbers: NDArray[np.float32] = (
            self.values.astype(np.float32) if self.codebook is None else self.codebook[self.values]
        )
        if self.zero_point is not None:
            numbers -= self.spread(self.zero_point).astype(np.float32)
        made = numbers * self.spread(self.scale).astype(np.float32)
        if made.shape != self.values.shape:
            raise ValueError(f"`{self.name}` has {self.scale.size} scales")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationQuantizer:
    """A tensor that is rounded with a scale that was found beforehand.

    Attributes:
        tensor: Its value in the skeleton.
        name: Name of the quantising node.
        scale: Floating point, as it is stored.
        zero_point: Of the integers' type; None when it is left out, and counts as uint8 0.
        halves_differ: It is dequantised with another scale or zero point than it is quantised with.
        readers: Nodes of the skeleton that read the rounded numbers.
    """

    tensor: ir.Value
    name: str
    scale: NDArray[np.floating[Any]]
    zero_point: NDArray[Any] | None
    halves_differ: bool
    readers: list[ir.Node]


@dataclass(slots=True, kw_only=True)
class Skeleton:
    """The float graph behind a quantised one.

    Attributes:
        model: The graph, edited in place. Values of `constants` have no content yet.
        constants: Value of the skeleton -> what was stored for it.
        activations: Every pair that was taken out.
        integer_inputs: Nodes whose first input was rounded, beforehand or at run time.
        rebuilt: Nodes that were written anew in the place of several.
    """

    model: ir.Model
    constants: dict[ir.Value, StoredConstant] = field(default_factory=dict)
    activations: list[ActivationQuantizer] = field(default_factory=list)
    integer_inputs: set[ir.Node] = field(default_factory=set)
    rebuilt: set[ir.Node] = field(default_factory=set)

    def fill(self, value: ir.Value, content: NDArray[Any]) -> None:
        """Give a value of `constants` its content."""
        value.const_value = ir.tensor(content, name=value.name)
        value.shape, value.dtype = ir.Shape(content.shape), value.const_value.dtype
        self.model.graph.register_initializer(value)


def unquantize(model: ir.Model) -> Skeleton:
    """Takes the quantisation out of a graph.

    Args:
        model: As a stage of this package or another tool wrote it; edited in place.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    skeleton = Skeleton(model=model)
    editor = GraphEditor(model.graph)
    for node in list(model.graph):
        if is_standard(node, "DequantizeLinear"):
            _lift_constant(node, skeleton, editor)
    for node in list(model.graph):
        if is_standard(node, "MatMulInteger"):
            _rebuild_product(node, skeleton, editor)
    for node in list(model.graph):
        if is_standard(node, "Gather"):
            _rebuild_lookup(node, skeleton, editor)
        elif node.op_type == "GatherBlockQuantized" and node.domain == CONTRIB_DOMAIN:
            _rebuild_block_lookup(node, skeleton, editor)
        elif node.op_type == OPERATOR and node.domain == CONTRIB_DOMAIN:
            _rebuild_normal_floats(node, skeleton, editor)
    # Last, because they keep the values that they read, and those above are written anew.
    for node in list(model.graph):
        if is_standard(node, "QuantizeLinear"):
            _remove_pairs(node, skeleton)
    RemoveUnusedNodesPass()(model)
    return skeleton


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant's content; None for what is computed, or may be replaced by the caller."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _placeholder(skeleton: Skeleton, editor: GraphEditor, stored: StoredConstant) -> ir.Value:
    value = ir.Value(name=editor.name(f"{stored.name}_restored"))
    skeleton.constants[value] = stored
    return value


def _lift_constant(node: ir.Node, skeleton: Skeleton, editor: GraphEditor) -> None:
    """A dequantised constant becomes a constant."""
    values, scale = _array(node.inputs[0]), _array(input_of(node, 1))
    result = node.outputs[0]
    if values is None or scale is None or result.is_graph_output():
        return
    axis = int_attribute(node, "axis", _DEFAULT_AXIS) if scale.ndim else None
    stored = StoredConstant(
        name=(node.inputs[0] and node.inputs[0].name) or node_name(node),
        values=values,
        scale=scale,
        zero_point=_array(input_of(node, 2)),
        axis=axis if axis is None else axis % max(values.ndim, 1),
        block_size=int_attribute(node, "block_size", 0) or None,
    )
    ir.convenience.replace_all_uses_with(result, _placeholder(skeleton, editor, stored))


def _remove_pairs(node: ir.Node, skeleton: Skeleton) -> None:
    """What reads the rounded tensor reads the tensor itself."""
    source, scale = node.inputs[0], _array(input_of(node, 1))
    if source is None or scale is None or source.const_value is not None:
        return
    zero_point = _array(input_of(node, 2))
    for back in consumers(node.outputs[0]):
        if not is_standard(back, "DequantizeLinear"):
            continue
        rounded = back.outputs[0]
        readers = list(consumers(rounded))
        is_output = rounded.is_graph_output()
        skeleton.activations.append(
            ActivationQuantizer(
                tensor=source,
                name=node_name(node),
                scale=scale,
                zero_point=zero_point,
                halves_differ=not (
                    _same(scale, _array(input_of(back, 1)))
                    and _same(zero_point, _array(input_of(back, 2)))
                ),
                readers=readers,
            )
        )
        skeleton.integer_inputs.update(r for r in readers if r.inputs[0] is rounded)
        name = rounded.name
        if is_output:
            source.shape, source.type = rounded.shape, source.type or rounded.type
        ir.convenience.replace_all_uses_with(rounded, source, replace_graph_outputs=True)
        if is_output:
            # The name of the output is its user's; that of the unrounded tensor was made up.
            rounded.name = f"{name}_rounded"
            source.name = name


def _same(left: NDArray[Any] | None, right: NDArray[Any] | None) -> bool:
    if left is None or right is None:
        return left is right
    return (
        left.dtype == right.dtype
        and left.size == right.size
        and bool((left.reshape(-1) == right.reshape(-1)).all())
    )


def _rebuild_product(node: ir.Node, skeleton: Skeleton, editor: GraphEditor) -> None:
    """A product of integers, with all that belongs to it, becomes a MatMul."""
    left, right = node.inputs[0], node.inputs[1]
    quantizer = None if left is None else left.producer()
    values = _array(right)
    if quantizer is None or values is None or right is None:
        return
    if not is_standard(quantizer, "DynamicQuantizeLinear"):
        return
    cast = only_consumer(node.outputs[0])
    if not is_standard(cast, "Cast") or cast is None or int_attribute(cast, "to", 0) != _FLOAT:
        return
    scaled = only_consumer(cast.outputs[0])
    if scaled is None or not is_standard(scaled, "Mul"):
        return
    scales = _other_input(scaled, cast.outputs[0])
    both = None if scales is None else scales.producer()
    if both is None or not is_standard(both, "Mul"):
        return
    own = _array(_other_input(both, quantizer.outputs[1]))
    source = quantizer.inputs[0]
    is_whole = (
        left is quantizer.outputs[0]
        and input_of(node, 2) is quantizer.outputs[2]
        and own is not None
        and source is not None
    )
    if not is_whole or own is None:
        return
    stored = StoredConstant(
        name=right.name or node_name(node),
        values=values,
        scale=own,
        zero_point=_array(input_of(node, 3)),
        axis=1 if own.ndim else None,
    )
    weight = _placeholder(skeleton, editor, stored)
    made = editor.insert(scaled, "MatMul", [source, weight], output=f"{node_name(node)}_product")
    product = made.producer()
    assert product is not None
    skeleton.rebuilt.add(product)
    skeleton.integer_inputs.add(product)
    replace_value(scaled.outputs[0], made)


def _rebuild_lookup(node: ir.Node, skeleton: Skeleton, editor: GraphEditor) -> None:
    """A lookup in a table of integers, with that of its scales, becomes one lookup."""
    table, indices = node.inputs[0], input_of(node, 1)
    values = _array(table)
    if (
        table is None
        or values is None
        or values.dtype not in {np.dtype(np.int8), np.dtype(np.uint8)}
    ):
        return
    if int_attribute(node, "axis", 0) not in {0, -values.ndim}:
        return
    cast = only_consumer(node.outputs[0])
    if cast is None or not is_standard(cast, "Cast") or int_attribute(cast, "to", 0) != _FLOAT:
        return
    scaled = only_consumer(cast.outputs[0])
    if scaled is None or not is_standard(scaled, "Mul"):
        return
    row = _other_input(scaled, cast.outputs[0])
    other = None if row is None else row.producer()
    if other is None or not is_standard(other, "Gather") or input_of(other, 1) is not indices:
        return
    scale = _array(other.inputs[0])
    if scale is None or scale.shape[1:] != (1,) * (values.ndim - 1):
        return
    stored = StoredConstant(
        name=table.name or node_name(node),
        values=values,
        scale=scale.reshape(-1),
        zero_point=None,
        axis=0,
    )
    content = _placeholder(skeleton, editor, stored)
    made = editor.insert(scaled, "Gather", [content, indices], output=f"{node_name(node)}_lookup")
    lookup = made.producer()
    assert lookup is not None
    skeleton.rebuilt.add(lookup)
    replace_value(scaled.outputs[0], made)


def _rebuild_block_lookup(node: ir.Node, skeleton: Skeleton, editor: GraphEditor) -> None:
    """A lookup in a table of integers in blocks along its rows becomes one in a table."""
    table, indices, scales = node.inputs[:3]
    values, scale = _array(table), _array(scales)
    zero = input_of(node, 3)
    zeros = _array(zero)
    if table is None or values is None or scale is None or (zero is not None and zeros is None):
        return
    axes = (int_attribute(node, "gather_axis", 0), int_attribute(node, "quantize_axis", 1))
    if values.ndim != 2 or axes != (0, 1) or values.dtype.name not in {"int4", "uint4"}:
        return
    stored = StoredConstant(
        name=table.name or node_name(node),
        values=values,
        scale=scale,
        zero_point=zeros,
        axis=1,
        block_size=int_attribute(node, "block_size", 128),
    )
    content = _placeholder(skeleton, editor, stored)
    made = editor.insert(node, "Gather", [content, indices], output=f"{node_name(node)}_lookup")
    lookup = made.producer()
    assert lookup is not None
    skeleton.rebuilt.add(lookup)
    replace_value(node.outputs[0], made)


def _rebuild_normal_floats(node: ir.Node, skeleton: Skeleton, editor: GraphEditor) -> None:
    """A product with a weight in NF4 becomes a MatMul."""
    made, stored = read_normal_floats(node), input_of(node, 1)
    if made is None or stored is None:
        return
    constant = StoredConstant(
        name=stored.name or node_name(node),
        values=made.codes.T,
        scale=made.scale.T,
        zero_point=None,
        axis=0,
        block_size=int_attribute(node, "block_size", 0),
        codebook=NF4,
    )
    weight = _placeholder(skeleton, editor, constant)
    inputs = [node.inputs[0], weight]
    result = editor.insert(node, "MatMul", inputs, output=f"{node_name(node)}_product")
    product = result.producer()
    assert product is not None
    skeleton.rebuilt.add(product)
    replace_value(node.outputs[0], result)


def _other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other factor of a product of two; None when `value` is not just one of them."""
    others: Iterator[ir.Value | None] = (each for each in node.inputs if each is not value)
    found = list(others)
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None
