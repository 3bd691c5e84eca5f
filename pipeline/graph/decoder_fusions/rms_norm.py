"""Normalisation by the root of the mean square -> one operator, with a residual sum before it too.

    x * 1 / sqrt(mean(x * x) + epsilon) * scale  ->  RMSNormalization(x, scale)
    RMSNormalization(x + skip, scale)            ->  SkipSimplifiedLayerNormalization(x, skip, scale)

Conditions of the first: the mean is taken over the last axis and keeps it, epsilon is one positive
number, and what is squared is what is multiplied. A scale is taken in when it is a constant of that
axis; one of ones stands in where there is none. Of the second: those of
`pipeline.graph.fusions.layer_norm`.

Source: `RMSNormalization` of ONNX opset 23; `SkipSimplifiedLayerNormalization` in ONNX Runtime 1.31.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    constant_scalar,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.opsets import raise_opset

if TYPE_CHECKING:
    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "rms_norm"
SKIP = "skip_rms_norm"

OPSET = 23
"""The first with `RMSNormalization`."""


def fuse_rms_norm(model: ir.Model, shapes: SymbolicShapes) -> Outcome:
    """Fuses every such normalisation; see the module.

    Raises:
        StageError: when an operator of the graph would mean something else in opset 23.
    """
    outcome = Outcome()
    graph = model.graph
    editor = GraphEditor(graph)
    ones: dict[int, ir.Value] = {}
    for mean in [node for node in graph if is_standard(node, "ReduceMean")]:
        source = _squared(mean)
        if source is None:
            continue
        try:
            product, epsilon = _read(mean, source, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(mean), reason=str(refusal)))
            continue
        raise_opset(model, OPSET)
        _write(editor, (source, product, epsilon), shapes, ones)
        outcome.fired += 1
    return outcome


def _squared(mean: ir.Node) -> ir.Value | None:
    """What the mean is taken of the square of; None when it is the mean of something else."""
    value = input_of(mean, 0)
    node = None if value is None else value.producer()
    if node is None:
        return None
    left, right = input_of(node, 0), input_of(node, 1)
    if is_standard(node, "Pow") and constant_scalar(right) == 2.0:
        return left
    return left if is_standard(node, "Mul") and left is right else None


def _read(mean: ir.Node, source: ir.Value, shapes: SymbolicShapes) -> tuple[ir.Node, float]:
    """The last product, and epsilon."""
    shape = shapes.of(source)
    if shape is None or not shape[-1].is_constant:
        raise Refused("the length of the last axis is not known")
    axes = shapes.content(input_of(mean, 1))
    given = mean.attributes.get("axes")
    chosen = (
        tuple(given.as_ints())
        if given is not None
        else tuple(dim.factor for dim in axes or () if dim)
    )
    if chosen not in {(-1,), (len(shape) - 1,)} or not int_attribute(mean, "keepdims", 1):
        raise Refused("the mean is not taken over the last axis alone")
    added = _only(mean, "Add")
    epsilon = next(
        (number for side in added.inputs if (number := constant_scalar(side)) is not None), None
    )
    if epsilon is None or not epsilon > 0:
        raise Refused("what is added to the mean square is no positive number")
    last = _only(_only(added, "Sqrt"), "Reciprocal", "Div")
    if is_standard(last, "Div"):
        root = input_of(last, 1)
        if root is None or not is_standard(root.producer(), "Sqrt"):
            raise Refused("the root is divided")
        if input_of(last, 0) is source:
            return last, epsilon
        if constant_scalar(input_of(last, 0)) != 1.0:
            raise Refused("the root divides something else than what was squared")
    product = _only(last, "Mul")
    if source not in product.inputs:
        raise Refused("another tensor is multiplied than was squared")
    return product, epsilon


def _only(node: ir.Node, *operators: str) -> ir.Node:
    reader = only_consumer(node.outputs[0])
    if reader is None or not is_standard(reader, *operators):
        raise Refused(f"behind `{node_name(node)}` is no single {' or '.join(operators)}")
    return reader


def _write(
    editor: GraphEditor,
    found: tuple[ir.Value, ir.Node, float],
    shapes: SymbolicShapes,
    ones: dict[int, ir.Value],
) -> None:
    source, product, epsilon = found
    shape = shapes.of(source) or ()
    width = shape[-1].factor
    last, scale = product, None
    reader = only_consumer(product.outputs[0])
    if reader is not None and is_standard(reader, "Mul"):
        for side in reader.inputs:
            if side is not None and side is not product.outputs[0] and _is_scale(side, width):
                last, scale = reader, side
    if scale is None:
        if width not in ones:
            ones[width] = editor.constant(editor.name(f"ones_{width}"), np.ones(width, np.float32))
        scale = ones[width]
    result = editor.insert(
        last,
        "RMSNormalization",
        [source, scale],
        output=f"{last.outputs[0].name}_rms",
        attributes={"axis": -1, "epsilon": epsilon},
    )
    result.shape = last.outputs[0].shape
    replace_value(last.outputs[0], result)


def _is_scale(value: ir.Value, width: int) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return tuple(tensor.shape.numpy()) == (width,)


def fuse_skip_rms_norm(graph: ir.Graph, shapes: SymbolicShapes) -> Outcome:
    """Fuses every residual sum that a normalisation reads; see the module."""
    outcome = Outcome()
    editor = GraphEditor(graph)
    order = {node: number for number, node in enumerate(graph)}
    for norm in [node for node in graph if is_standard(node, "RMSNormalization")]:
        source = input_of(norm, 0)
        added = None if source is None else source.producer()
        if added is None or not is_standard(added, "Add"):
            continue
        try:
            _require_first(norm, added.outputs[0], order)
            _write_skip(norm, added, editor, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(norm), reason=str(refusal)))
        else:
            outcome.fired += 1
    return outcome


def _require_first(norm: ir.Node, total: ir.Value, order: dict[ir.Node, int]) -> None:
    if any(order.get(reader, -1) < order[norm] for reader in consumers(total)):
        raise Refused("the sum is read before it is normalised")


def _write_skip(
    norm: ir.Node, added: ir.Node, editor: GraphEditor, shapes: SymbolicShapes
) -> None:
    left, right = added.inputs
    shape = shapes.of(left)
    total = added.outputs[0]
    if shape is None or shape != shapes.of(right):
        raise Refused("the two summands are not known to have the same shape")
    if len(shape) not in {2, 3}:
        raise Refused(f"the summands have {len(shape)} axes, not 2 or 3")
    if total.is_graph_output():
        raise Refused("the sum is an output of the graph")
    if sum(is_standard(reader, "RMSNormalization") for reader in consumers(total)) > 1:
        raise Refused("the sum is normalised more than once")
    scale = input_of(norm, 1)
    if scale is None or scale.const_value is None:
        raise Refused("the scale is no constant")
    epsilon = norm.attributes.get("epsilon")
    result = norm.outputs[0]
    outputs = editor.insert_with_outputs(
        norm,
        "SkipSimplifiedLayerNormalization",
        [left, right, scale],
        outputs=(f"{result.name}_skip", "", "", f"{total.name}_sum"),
        attributes={"epsilon": 1e-5 if epsilon is None else epsilon.as_float()},
        domain=CONTRIB_DOMAIN,
    )
    replace_value(result, outputs[0])
    if only_consumer(total) is not norm:
        replace_value(total, outputs[3])
