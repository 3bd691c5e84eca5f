"""Products of one tensor whose results are split into heads, merged into one product.

    x -> MatMul(Wq) [-> Add(bq)] -> Reshape(heads) -> Transpose    (and the same of K, and of V)
    x -> MatMul(Wq|Wk|Wv) -> Add(bq|bk|bv) -> Reshape(all heads) -> Transpose -> Split

TensorRT merges the three products by itself, and then writes each of the three with a kernel of its
own; given one product it writes all three with one kernel. Two layers fewer for each attention, whatever
the precision, and no number changes: every output is the sum of the same products. Scales of weights
stand along the outputs, and are the same ones too.

Conditions: constant weights and biases that nobody else reads; every step read by the next one alone;
(batch, length, features) in and (batch, length, heads, size) out, proven for every shape, with one size
of a head. Heads of K and V may be fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    input_of,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.fusions.shapes import SymbolicShapes

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

_HEADS_FIRST: Final = (0, 2, 1, 3)
_TURNED: Final = (0, 2, 3, 1)
"""Of K, whose product with Q wants it turned."""

_FIRST_OPSET: Final = 13
"""`Split` takes sizes as an input since then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """One product and what splits its result."""

    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    transpose: ir.Node
    is_turned: bool
    heads: int
    size: int


def merge_heads(model: ir.Model) -> tuple[tuple[str, ...], ...]:
    """Merges the products of the main graph that fulfil the conditions, in place.

    Returns:
        Names of the products that became one, for each merged one.
    """
    if model.opset_imports.get("", 0) < _FIRST_OPSET:
        return ()
    graph = model.graph
    shapes = SymbolicShapes(graph)
    sources: dict[ir.Value, list[_Projection]] = {}
    for node in graph:
        projection = _projection(node, shapes)
        if projection is not None and node.inputs[0] is not None:
            sources.setdefault(node.inputs[0], []).append(projection)
    editor = GraphEditor(graph)
    merged = []
    for source, found in sources.items():
        kinds = {(each.size, each.weight.dtype) for each in found}
        if len(found) > 1 and len(kinds) == 1:
            _merge(source, found, editor)
            merged.append(tuple(node_name(each.product) for each in found))
    if merged:
        RemoveUnusedNodesPass()(model)
    return tuple(merged)


def _projection(product: ir.Node, shapes: SymbolicShapes) -> _Projection | None:
    """What a product is part of; None when it is left alone."""
    weight = input_of(product, 1)
    steps = _steps(product)
    if weight is None or steps is None or not _is_own_constant(weight, axes=2):
        return None
    bias, reshape, transpose = steps
    order = transpose.attributes.get("perm")
    perm = tuple(order.as_ints()) if order is not None else ()
    heads = _heads(product, reshape, shapes)
    widths = {_width(value) for value in (weight, bias) if value is not None}
    if heads is None or perm not in {_HEADS_FIRST, _TURNED} or widths != {heads[0] * heads[1]}:
        return None
    return _Projection(
        product=product,
        weight=weight,
        bias=bias,
        transpose=transpose,
        is_turned=perm == _TURNED,
        heads=heads[0],
        size=heads[1],
    )


def _steps(product: ir.Node) -> tuple[ir.Value | None, ir.Node, ir.Node] | None:
    """The bias, the Reshape and the Transpose behind a product."""
    if not is_standard(product, "MatMul"):
        return None
    bias, last = None, product.outputs[0]
    reader = only_consumer(last)
    if reader is not None and is_standard(reader, "Add"):
        bias = next((value for value in reader.inputs if value is not last), None)
        if not _is_own_constant(bias, axes=1):
            return None
        last = reader.outputs[0]
        reader = only_consumer(last)
    if reader is None or not is_standard(reader, "Reshape") or reader.inputs[0] is not last:
        return None
    transpose = only_consumer(reader.outputs[0])
    if transpose is None or not is_standard(transpose, "Transpose"):
        return None
    return bias, reader, transpose


def _heads(product: ir.Node, reshape: ir.Node, shapes: SymbolicShapes) -> tuple[int, int] | None:
    """How many heads, of which size, where (batch, length, ...) stays as it is whatever it is."""
    given, split = shapes.of(product.inputs[0]), shapes.of(reshape.outputs[0])
    if given is None or split is None or (len(given), len(split)) != (3, 4):
        return None
    heads, size = split[2:]
    is_proven = split[:2] == given[:2] and heads.is_constant and size.is_constant
    return (heads.factor, size.factor) if is_proven else None


def _is_own_constant(value: ir.Value | None, *, axes: int) -> bool:
    """Whether a value is a constant of so many axes that one node alone reads."""
    if value is None or value.const_value is None or value.is_graph_output():
        return False
    return len(value.const_value.shape) == axes and len(consumers(value)) == 1


def _width(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.numpy().shape[-1])


def _array(value: ir.Value) -> NDArray[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _merge(source: ir.Value, found: list[_Projection], editor: GraphEditor) -> None:
    before = found[0].product  # the first in the graph's order
    name = "_and_".join(node_name(each.product) for each in found)
    kind = found[0].weight.dtype
    assert kind is not None
    weights = np.concatenate([_array(each.weight) for each in found], axis=1)
    weight = editor.constant(editor.name(f"{name}_weight"), weights)
    last = editor.insert(before, "MatMul", [source, weight], output=name, dtype=kind)
    if any(each.bias is not None for each in found):
        parts = [
            np.zeros(_width(each.weight), weights.dtype)
            if each.bias is None
            else _array(each.bias)
            for each in found
        ]
        bias = editor.constant(editor.name(f"{name}_bias"), np.concatenate(parts))
        last = editor.insert(before, "Add", [last, bias], output=f"{name}_biased", dtype=kind)
    heads = [each.heads for each in found]
    # A zero keeps the length of the axis.
    shape = editor.integers((0, 0, sum(heads), found[0].size))
    last = editor.insert(before, "Reshape", [last, shape], output=f"{name}_split", dtype=kind)
    last = editor.insert(
        before,
        "Transpose",
        [last],
        output=f"{name}_heads",
        attributes={"perm": _HEADS_FIRST},
        dtype=kind,
    )
    outputs = editor.insert_with_outputs(
        before,
        "Split",
        [last, editor.integers(heads)],
        outputs=[f"{name}_part_{number}" for number in range(len(found))],
        attributes={"axis": 1},
    )
    for each, part in zip(found, outputs, strict=True):
        part.dtype = kind
        result = part
        if each.is_turned:
            result = editor.insert(
                before,
                "Transpose",
                [part],
                output=f"{part.name}_turned",
                attributes={"perm": (0, 1, 3, 2)},
                dtype=kind,
            )
        result.shape = each.transpose.outputs[0].shape
        replace_value(each.transpose.outputs[0], result)
