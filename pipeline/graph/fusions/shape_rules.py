"""How each operator makes shapes, and which of them shape arithmetic is made of.

A rule returns None when it cannot say, and None for a single axis whose length it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.graph.fusions.dims import (
    ONE,
    Content,
    Dim,
    Shape,
    broadcast,
    minimum,
    product,
    total,
)
from pipeline.graph.fusions.matching import input_of, int_attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes


def fresh(value: ir.Value, axis: int) -> Dim:
    """A length that is equal to no other."""
    return Dim(1, (f"{value.name}[{axis}]",))


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def _constants(content: Content | None) -> tuple[int, ...] | None:
    if content is None or any(dim is None or not dim.is_constant for dim in content):
        return None
    return tuple(dim.factor for dim in content if dim is not None)


def resolve_reshape(
    shape: Shape | None, target: Content, node: ir.Node, *, keeps_zero: bool
) -> Shape | None:
    """The shape that a `Reshape` node gives to a tensor of `shape`; its `target` may hold 0 and -1."""
    dims: list[Dim | None] = []
    for axis, wanted in enumerate(target):
        if wanted == Dim(0) and not keeps_zero:
            if shape is None or axis >= len(shape):
                return None
            dims.append(shape[axis])
        else:
            dims.append(wanted)
    output = node.outputs[0]
    if dims.count(Dim(-1)) == 1 and None not in dims:
        index = dims.index(Dim(-1))
        others = product(dim for i, dim in enumerate(dims) if dim is not None and i != index)
        dims[index] = None if shape is None else product(shape).divided_by(others)
    return tuple(
        fresh(output, axis) if dim is None or dim.factor < 0 else dim
        for axis, dim in enumerate(dims)
    )


def _reshape(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    return shapes.reshaped(shapes.of(input_of(node, 0)), node)


def _transpose(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    shape = shapes.of(input_of(node, 0))
    if shape is None:
        return None
    order = _ints(node, "perm") or tuple(reversed(range(len(shape))))
    return tuple(shape[axis] for axis in order)


def _matmul(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    left, right = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 1))
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    return (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])


def _gemm(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    left, right = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 1))
    if left is None or right is None:
        return None
    return (left[int_attribute(node, "transA", 0)], right[1 - int_attribute(node, "transB", 0)])


def _gather(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    table, indices = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 1))
    if table is None or indices is None:
        return None
    axis = int_attribute(node, "axis", 0) % len(table)
    return (*table[:axis], *indices, *table[axis + 1 :])


def _gather_nd(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    table, indices = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 1))
    batch_dims = int_attribute(node, "batch_dims", 0)
    if table is None or not indices or not indices[-1].is_constant:
        return None
    return (*indices[:-1], *table[batch_dims + indices[-1].factor :])


def _slice(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    shape = shapes.of(input_of(node, 0))
    starts, ends = (shapes.content(input_of(node, index)) for index in (1, 2))
    if shape is None or starts is None or ends is None:
        return None
    axes = _constants(shapes.content(input_of(node, 3)) if input_of(node, 3) else None)
    steps = shapes.content(input_of(node, 4))
    result: list[Dim | None] = list(shape)
    for index, axis in enumerate(axes or range(len(starts))):
        step = Dim(1) if steps is None else steps[index]
        result[axis] = _slice_length(shape[axis], starts[index], ends[index], step)
    return tuple(result)


def _slice_length(length: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    if start is None or end is None or step is None:
        return None
    if all(dim.is_constant for dim in (length, start, end, step)):
        taken = slice(start.factor, end.factor, step.factor)
        return Dim(len(range(*taken.indices(length.factor)))) if step.factor > 0 else None
    if start != Dim(0) or step != ONE:
        return None
    if end == length or (end.is_constant and end.factor >= 2**31 - 1):
        return length
    if length.is_constant and not end.is_constant and end.factor > 0:
        return minimum(end, length.factor)
    return None


def _unsqueeze(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    shape, axes = shapes.of(input_of(node, 0)), _constants(shapes.content(input_of(node, 1)))
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(shape)
    return tuple(ONE if axis in places else next(rest) for axis in range(rank))


def _squeeze(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    shape = shapes.of(input_of(node, 0))
    if shape is None:
        return None
    axes = _constants(shapes.content(input_of(node, 1)))
    if axes is None:
        return () if shape == (ONE,) and input_of(node, 1) is None else None
    places = {axis % len(shape) for axis in axes}
    return tuple(dim for axis, dim in enumerate(shape) if axis not in places)


def _expand(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    shape, target = shapes.of(input_of(node, 0)), shapes.content(input_of(node, 1))
    if shape is None or target is None or None in target:
        return None
    return broadcast(shape, tuple(dim for dim in target if dim is not None))


def _range(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    start, limit, step = (shapes.content(input_of(node, index)) for index in range(3))
    if start == (Dim(0),) and step == (Dim(1),) and limit:
        return (limit[0],)
    return (None,)


def _concat(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    parts = [shapes.of(source) for source in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or not known:
        return None
    axis = int_attribute(node, "axis", 0) % len(known[0])
    return (*known[0][:axis], total([part[axis] for part in known]), *known[0][axis + 1 :])


def _reduce(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    shape = shapes.of(input_of(node, 0))
    given = _ints(node, "axes")
    axes = _constants(shapes.content(input_of(node, 1))) if given is None else given
    if shape is None or axes is None:
        return None
    places = {axis % len(shape) for axis in axes}
    if int_attribute(node, "keepdims", 1):
        return tuple(ONE if axis in places else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in places)


def _shape_of(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    content = shapes.content(node.outputs[0])
    return None if content is None else (Dim(len(content)),)


def _tile(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    shape, repeats = shapes.of(input_of(node, 0)), shapes.content(input_of(node, 1))
    if shape is None or repeats is None or len(shape) != len(repeats):
        return None
    return tuple(
        None if repeat is None else dim * repeat
        for dim, repeat in zip(shape, repeats, strict=True)
    )


def _indices(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    return shapes.of(input_of(node, 1))


def _conv(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    image, weight = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 1))
    if image is None or weight is None or len(image) != len(weight):
        return None
    kernel = _ints(node, "kernel_shape") or _constants(weight[2:])
    return (image[0], weight[0], *_windows(node, image[2:], kernel))


def _pool(shapes: SymbolicShapes, node: ir.Node) -> tuple[Dim | None, ...] | None:
    image = shapes.of(input_of(node, 0))
    if image is None:
        return None
    return (*image[:2], *_windows(node, image[2:], _ints(node, "kernel_shape")))


def _global_pool(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    image = shapes.of(input_of(node, 0))
    return None if image is None else (*image[:2], *(ONE for _ in image[2:]))


def _windows(
    node: ir.Node, sizes: Shape, kernel: tuple[int, ...] | None
) -> tuple[Dim | None, ...]:
    """How often a window fits into each axis, by the formula of ONNX's Conv and MaxPool."""
    unknown = (None,) * len(sizes)
    auto_pad = node.attributes.get("auto_pad")
    is_automatic = auto_pad is not None and auto_pad.as_string() not in {"NOTSET", "VALID"}
    if kernel is None or is_automatic or int_attribute(node, "ceil_mode", 0):
        return unknown
    ones = (1,) * len(sizes)
    strides, dilations = _ints(node, "strides") or ones, _ints(node, "dilations") or ones
    pads = _ints(node, "pads") or (0,) * (2 * len(sizes))
    return tuple(
        Dim((size.factor + pads[axis] + pads[axis + len(sizes)] - reach) // strides[axis] + 1)
        if size.is_constant
        else None
        for axis, size in enumerate(sizes)
        for reach in [dilations[axis] * (kernel[axis] - 1) + 1]
    )


def split_part(shapes: SymbolicShapes, node: ir.Node, index: int) -> tuple[Dim | None, ...] | None:
    """The shape of one output of a `Split`."""
    shape = shapes.of(input_of(node, 0))
    if shape is None:
        return None
    axis = int_attribute(node, "axis", 0) % len(shape)
    return (*shape[:axis], _part_length(shapes, node, index, shape[axis]), *shape[axis + 1 :])


def _part_length(shapes: SymbolicShapes, node: ir.Node, index: int, length: Dim) -> Dim | None:
    if input_of(node, 1) is not None:
        lengths = shapes.content(input_of(node, 1))
        return None if lengths is None else lengths[index]
    # Only a length that divides evenly has parts of one size; else the last one is smaller.
    return length.divided_by(Dim(len(node.outputs)))


def _first(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    return shapes.of(input_of(node, 0))


def _attention(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    query, value = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 2))
    if query is None or value is None or not len(query) == len(value) == 3:
        return None
    return (*query[:2], value[2])


def _heads_attention(shapes: SymbolicShapes, node: ir.Node) -> Shape | None:
    query, value = shapes.of(input_of(node, 0)), shapes.of(input_of(node, 2))
    if query is None or value is None or not len(query) == len(value) == 4:
        return None
    return (*query[:3], value[3])


def _content_shape(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    shape = shapes.of(input_of(node, 0))
    if shape is None:
        return None
    end = node.attributes.get("end")
    return shape[int_attribute(node, "start", 0) : None if end is None else end.as_int()]


def _content_same(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    return shapes.content(input_of(node, 0))


def _content_reshape(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    content = shapes.content(input_of(node, 0))
    target = shapes.content(input_of(node, 1))
    return content if target is not None and len(target) <= 1 else None


def _content_concat(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    elements: list[Dim | None] = []
    for source in node.inputs:
        content = shapes.content(source)
        if content is None:
            shape = shapes.of(source)
            if shape is None or len(shape) != 1 or not shape[0].is_constant:
                return None
            content = (None,) * shape[0].factor
        elements.extend(content)
    return tuple(elements)


def _content_gather(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    content = shapes.content(input_of(node, 0))
    indices = _constants(shapes.content(input_of(node, 1)))
    if content is None or indices is None:
        return None
    return tuple(content[index] for index in indices)


def _content_slice(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    content = shapes.content(input_of(node, 0))
    starts, ends = (_constants(shapes.content(input_of(node, index))) for index in (1, 2))
    steps = _constants(shapes.content(input_of(node, 4))) if input_of(node, 4) else (1,)
    if content is None or starts is None or ends is None or steps is None:
        return None
    return content[starts[0] : ends[0] : steps[0]]


def _content_mul(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    left, right = shapes.content(input_of(node, 0)), shapes.content(input_of(node, 1))
    if left is None or right is None or len(left) != len(right):
        return None
    return tuple(
        None if a is None or b is None else a * b for a, b in zip(left, right, strict=True)
    )


def _content_add(shapes: SymbolicShapes, node: ir.Node) -> Content | None:
    left, right = shapes.content(input_of(node, 0)), shapes.content(input_of(node, 1))
    if left is None or right is None or len(left) != len(right):
        return None
    return tuple(
        None if a is None or b is None else total((a, b)) for a, b in zip(left, right, strict=True)
    )


SHAPE_RULES: dict[str, Callable[[SymbolicShapes, ir.Node], tuple[Dim | None, ...] | None]] = {
    "Attention": _heads_attention,
    "AveragePool": _pool,
    "Concat": _concat,
    "Conv": _conv,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _indices,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "MultiHeadAttention": _attention,
    "Range": _range,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "RMSNormalization": _first,
    "RotaryEmbedding": _first,
    "Shape": _shape_of,
    "SkipLayerNormalization": _first,
    "SkipSimplifiedLayerNormalization": _first,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
CONTENT_RULES: dict[str, Callable[[SymbolicShapes, ir.Node], Content | None]] = {
    "Add": _content_add,
    "Cast": _content_same,
    "Concat": _content_concat,
    "Gather": _content_gather,
    "Identity": _content_same,
    "Mul": _content_mul,
    "Reshape": _content_reshape,
    "Shape": _content_shape,
    "Slice": _content_slice,
    "Squeeze": _content_same,
    "Unsqueeze": _content_same,
}
