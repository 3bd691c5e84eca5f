"""Residual connection + LayerNormalization -> `com.microsoft.SkipLayerNormalization`.

    LayerNormalization(x + skip)  ->  SkipLayerNormalization(x, skip)

Conditions: both summands have the same shape (the operator broadcasts less than Add does), the
normalisation runs over the last axis only and has a scale. Where the sum is used again, as in
pre-norm models, the operator's fourth output delivers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "skip_layer_norm"


def fuse_skip_layer_norm(graph: ir.Graph, shapes: SymbolicShapes) -> Outcome:
    """Fuses every residual sum that a layer normalisation reads; see the module."""
    outcome = Outcome()
    editor = GraphEditor(graph)
    for norm in [node for node in graph if is_standard(node, "LayerNormalization")]:
        source = input_of(norm, 0)
        total = None if source is None else source.producer()
        if total is None or not is_standard(total, "Add"):
            continue
        try:
            _rewrite(norm, total, editor, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(norm), reason=str(refusal)))
        else:
            outcome.fired += 1
    return outcome


def _rewrite(norm: ir.Node, total: ir.Node, editor: GraphEditor, shapes: SymbolicShapes) -> None:
    left, right = total.inputs
    left_shape = shapes.of(left)
    if left_shape is None or left_shape != shapes.of(right):
        raise Refused("the two summands are not known to have the same shape")
    if len(left_shape) not in {2, 3}:
        raise Refused(f"the summands have {len(left_shape)} axes, not 2 or 3")
    if int_attribute(norm, "axis", -1) not in {-1, len(left_shape) - 1}:
        raise Refused("the normalisation covers more than the last axis")
    if len(norm.outputs) > 1:
        raise Refused("mean or deviation of the normalisation are used")
    if total.outputs[0].is_graph_output():
        raise Refused("the sum is an output of the graph")
    epsilon = norm.attributes.get("epsilon")
    keeps_sum = only_consumer(total.outputs[0]) is not norm
    outputs = editor.insert_with_outputs(
        norm,
        "SkipLayerNormalization",
        [left, right, *norm.inputs[1:]],
        outputs=(f"{norm.outputs[0].name}_skip", "", "", f"{total.outputs[0].name}_sum")
        if keeps_sum
        else (f"{norm.outputs[0].name}_skip",),
        attributes={"epsilon": 1e-5 if epsilon is None else epsilon.as_float()},
        domain=CONTRIB_DOMAIN,
    )
    replace_value(norm.outputs[0], outputs[0])
    if keeps_sum:
        replace_value(total.outputs[0], outputs[3])
