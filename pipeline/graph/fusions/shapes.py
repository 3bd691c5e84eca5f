"""Derives the shape of every value of a graph, and the content of its shape tensors.

ONNX's own inference gives up where a position table is sliced by the sequence length or a mask
comes out of an index grid, which is every exported encoder. This one follows lengths through the
arithmetic on shapes. Operators it does not know get lengths of their own, which prove nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.fusions.dims import Content, Dim, Shape, broadcast
from pipeline.graph.fusions.matching import input_of, int_attribute
from pipeline.graph.fusions.shape_rules import (
    CONTENT_RULES,
    SHAPE_RULES,
    fresh,
    resolve_reshape,
    split_part,
)

LARGEST_SHAPE_TENSOR = 32
"""Integer constants with more elements than this are no shapes."""

_SAME_SHAPE = frozenset({
    "Abs", "BatchNormalization", "BiasGelu", "Cast", "CastLike", "Ceil", "Clip", "Cos", "CumSum",
    "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu",
    "Log", "LogSoftmax", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh",
})  # fmt: skip
_BROADCASTING = frozenset({
    "Add", "And", "BitwiseAnd", "BitwiseOr", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
_SUMMING = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})


class SymbolicShapes:
    """Shapes and shape tensors of one graph, by value.

    Values made later are asked for like any other: they are derived on first use.

    Args:
        graph: The graph; named axes of its inputs are taken at their word.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._shapes: dict[ir.Value, Shape | None] = {}
        self._contents: dict[ir.Value, Content | None] = {}
        for node in graph:
            for output in node.outputs:
                self.of(output)
                self.content(output)

    def of(self, value: ir.Value | None) -> Shape | None:
        """The shape of `value`, or None when even its rank is unknown."""
        if value is None:
            return None
        if value not in self._shapes:
            self._shapes[value] = self._derive(value)
        return self._shapes[value]

    def content(self, value: ir.Value | None) -> Content | None:
        """The elements of an integer scalar or vector, or None when they are not followed.

        A scalar has one element; an element of None is not known.
        """
        if value is None:
            return None
        if value not in self._contents:
            self._contents[value] = self._derive_content(value)
        return self._contents[value]

    def reshaped(self, shape: Shape | None, node: ir.Node) -> Shape | None:
        """The shape that a `Reshape` node gives to a tensor of `shape`."""
        target = self.content(input_of(node, 1))
        if target is None:
            return None
        return resolve_reshape(
            shape, target, node, keeps_zero=bool(int_attribute(node, "allowzero", 0))
        )

    def _derive(self, value: ir.Value) -> Shape | None:
        tensor = value.const_value
        if tensor is not None:
            return tuple(Dim(int(length)) for length in tensor.shape.numpy())
        node = value.producer()
        if node is None:
            return _recorded(value)
        if node.domain in {"", "ai.onnx", "com.microsoft"}:
            derived = self._by_operator(node, value)
            if derived is not None:
                return tuple(
                    fresh(value, axis) if dim is None else dim for axis, dim in enumerate(derived)
                )
        recorded = value.shape
        if recorded is None:
            return None
        return tuple(
            Dim(length) if isinstance(length, int) else fresh(value, axis)
            for axis, length in enumerate(recorded)
        )

    def _by_operator(self, node: ir.Node, value: ir.Value) -> tuple[Dim | None, ...] | None:
        operator = node.op_type
        if operator == "Split":
            return split_part(self, node, node.outputs.index(value))
        if value is not node.outputs[0]:
            # Of these the fourth is the sum of the first two inputs.
            return self.of(input_of(node, 0)) if operator in _SUMMING else None
        if operator in _SAME_SHAPE:
            return self.of(input_of(node, 0))
        if operator in _BROADCASTING:
            return self._broadcast(node)
        rule = SHAPE_RULES.get(operator)
        return None if rule is None else rule(self, node)

    def _broadcast(self, node: ir.Node) -> tuple[Dim | None, ...] | None:
        result: Shape | None = ()
        for source in node.inputs:
            shape = self.of(source)
            if shape is None or result is None:
                return None
            partial = broadcast(result, shape)
            if None in partial:
                # One unknown axis does not spoil the others, but nothing more is added to it.
                return partial if len(node.inputs) == 2 else None
            result = tuple(dim for dim in partial if dim is not None)
        return result

    def _derive_content(self, value: ir.Value) -> Content | None:
        tensor = value.const_value
        if tensor is not None:
            small = tensor.size <= LARGEST_SHAPE_TENSOR and len(tensor.shape) <= 1
            if tensor.dtype not in _INTEGERS or not small:
                return None
            return tuple(Dim(int(element)) for element in tensor.numpy().reshape(-1))
        node = value.producer()
        if node is None or node.domain not in {"", "ai.onnx"}:
            return None
        rule = CONTENT_RULES.get(node.op_type)
        return None if rule is None else rule(self, node)


def _recorded(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    dims = []
    for axis, length in enumerate(value.shape):
        if isinstance(length, int):
            dims.append(Dim(length))
        elif length.value:
            dims.append(Dim(1, (length.value,)))
        else:
            dims.append(fresh(value, axis))
    return tuple(dims)
