"""Gemm between reshapes -> MatMul + Add on the tensor as it was.

    Reshape(Gemm(Reshape(x, (rows, k)), W, b), (..., n))  ->  x W + b

Simplifiers flatten (batch, sequence, k) to two axes because Gemm takes no more. ONNX Runtime gains
nothing from that, its dynamic quantisation knows MatMul but not Gemm, and the reshapes hide the
residual connection and the projections from the fusions that follow. Conditions: alpha = beta = 1,
transA = 0, constant W, the first reshape only merges the leading axes, and the result is only read
by reshapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.graph.fusions.dims import Dim, Shape, product
from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "linear"


def fuse_linear(graph: ir.Graph, shapes: SymbolicShapes) -> Outcome:
    """Rewrites every Gemm that works on a flattened tensor; see the module."""
    outcome = Outcome()
    editor = GraphEditor(graph)
    for gemm in [node for node in graph if is_standard(node, "Gemm")]:
        rows = input_of(gemm, 0)
        flatten = None if rows is None else rows.producer()
        if not is_standard(flatten, "Reshape"):
            continue
        try:
            _rewrite(gemm, flatten, editor, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(gemm), reason=str(refusal)))
        else:
            outcome.fired += 1
    return outcome


def _rewrite(
    gemm: ir.Node, flatten: ir.Node | None, editor: GraphEditor, shapes: SymbolicShapes
) -> None:
    source = None if flatten is None else input_of(flatten, 0)
    weight = input_of(gemm, 1)
    shape = shapes.of(source)
    if source is None or weight is None or shape is None or len(shape) < 3:
        raise Refused("the tensor before the reshape is not known to have more than two axes")
    _check_attributes(gemm, weight)
    if shapes.of(input_of(gemm, 0)) != (product(shape[:-1]), shape[-1]):
        raise Refused("the reshape before it does more than merge the leading axes")
    result = gemm.outputs[0]
    size = (shapes.of(result) or ())[-1]
    full = (*shape[:-1], size)
    readers = consumers(result)
    _check_readers(result, readers, shapes)
    output = _emit(gemm, source, weight, editor)
    for reader in readers:
        _redirect(reader, output, full, shapes)


def _check_attributes(gemm: ir.Node, weight: ir.Value) -> None:
    for name in ("alpha", "beta"):
        attribute = gemm.attributes.get(name)
        if attribute is not None and attribute.as_float() != 1.0:
            raise Refused(f"{name} is {attribute.as_float():g}, not 1")
    if int_attribute(gemm, "transA", 0):
        raise Refused("its first input is transposed")
    if weight.const_value is None:
        raise Refused("its weight is not constant")


def _check_readers(result: ir.Value, readers: tuple[ir.Node, ...], shapes: SymbolicShapes) -> None:
    if result.is_graph_output() or not all(is_standard(node, "Reshape") for node in readers):
        raise Refused("its result is used with two axes")
    for reader in readers:
        target = shapes.content(input_of(reader, 1))
        copies_axes = not int_attribute(reader, "allowzero", 0) and (
            target is None or Dim(0) in target
        )
        if copies_axes:
            raise Refused(f"`{node_name(reader)}` copies lengths from the flattened tensor")


def _emit(gemm: ir.Node, source: ir.Value, weight: ir.Value, editor: GraphEditor) -> ir.Value:
    matrix = weight
    if int_attribute(gemm, "transB", 0) and weight.const_value is not None:
        transposed = np.ascontiguousarray(weight.const_value.numpy().T)
        matrix = editor.constant(editor.name(f"{weight.name}_transposed"), transposed)
    name = gemm.outputs[0].name or "linear"
    output = editor.insert(gemm, "MatMul", [source, matrix], output=f"{name}_matmul")
    bias = input_of(gemm, 2)
    if bias is None:
        return output
    return editor.insert(gemm, "Add", [output, bias], output=f"{name}_bias")


def _redirect(reader: ir.Node, output: ir.Value, full: Shape, shapes: SymbolicShapes) -> None:
    if shapes.of(reader.outputs[0]) == full:
        replace_value(reader.outputs[0], output)
    else:
        reader.replace_input_with(0, output)
