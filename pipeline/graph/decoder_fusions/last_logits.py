"""Logits of the last tokens only, when a run asks for it: reading a prompt needs those of the last.

An input with a default says how many, as in exports for transformers.js: `num_logits_to_keep`, int64 (1,),
0 for all. Where a run does not give it, the graph gives what it gave before. The rest of the tokens is
left out before the product with the vocabulary, which is most of the work for a small model.

Conditions: `logits` comes from a product with a constant, and what stands behind that changes each number
for itself, by constants of one element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.graph.fusions.matching import (
    GraphEditor,
    constant_scalar,
    input_of,
    is_standard,
    node_name,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.fusions.shapes import SymbolicShapes

if TYPE_CHECKING:
    import onnx_ir as ir

NAME: Final = "last_logits"
INPUT: Final = "num_logits_to_keep"
LOGITS: Final = "logits"

_END = np.iinfo(np.int64).max
_TOKEN_AXIS = 1


def add_input(graph: ir.Graph) -> Outcome:
    """Adds the optional input; see the module. Fires once or not at all."""
    outcome = Outcome()
    if any(value.name == INPUT for value in graph.inputs):
        return outcome
    try:
        product = _product(graph, SymbolicShapes(graph))
    except Refused as refusal:
        outcome.refused.append(Refusal(node=LOGITS, reason=str(refusal)))
        return outcome
    import onnx_ir as ir

    editor = GraphEditor(graph)
    keep = editor.constant(INPUT, np.zeros(1, np.int64))
    graph.inputs.append(keep)
    hidden = product.inputs[0]
    assert hidden is not None
    start = editor.insert(product, "Neg", [keep], output=f"{INPUT}_start", dtype=ir.DataType.INT64)
    last = editor.insert(
        product,
        "Slice",
        [hidden, start, editor.integers((int(_END),)), editor.integers((_TOKEN_AXIS,))],
        output=f"{hidden.name}_last",
        dtype=hidden.dtype or ir.DataType.FLOAT,
    )
    product.replace_input_with(0, last)
    outcome.fired = 1
    return outcome


def _product(graph: ir.Graph, shapes: SymbolicShapes) -> ir.Node:
    """The product with the vocabulary."""
    current = next((value for value in graph.outputs if value.name == LOGITS), None)
    while current is not None:
        node = current.producer()
        if node is None:
            break
        if is_standard(node, "MatMul"):
            weight, hidden = input_of(node, 1), input_of(node, 0)
            is_sequence = len(shapes.of(hidden) or ()) == 3
            if weight is None or weight.const_value is None or not is_sequence:
                raise Refused("logits are no product of (batch, sequence, size) and a constant")
            return node
        if is_standard(node, "Tanh"):
            current = input_of(node, 0)
            continue
        sides = [side for side in node.inputs if constant_scalar(side) is None]
        if not is_standard(node, "Mul", "Div") or len(sides) != 1:
            raise Refused(f"`{node_name(node)}` ({node.op_type}) makes the logits")
        current = sides[0]
    raise Refused("the graph makes no logits")
