"""`Attention` behind a cache that grows -> `Attention` that takes the past and gives the present.

    present = Concat(past, new);  Attention(Q, present key, present value)
    ->  Attention(Q, new key, new value, past key, past value) -> result, present key, present value

Conditions: keys and values are both such sums along the tokens, of an input of the graph and the new
ones, in that order; nothing but the operator reads them, and the graph returns them.

Source: `Attention` of ONNX opset 23, onnx 1.23: inputs 4 and 5, outputs 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from pipeline.graph.fusions.matching import (
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "cached_attention"

_MASK, _PAST_KEY = 3, 4
_TOKEN_AXIS = 2


def absorb_caches(graph: ir.Graph) -> Outcome:
    """Rewrites every `Attention` that fulfils the conditions; see the module."""
    outcome = Outcome()
    for node in [node for node in graph if is_standard(node, "Attention")]:
        if input_of(node, _PAST_KEY) is not None:
            continue
        try:
            grown = [_grown(node, index) for index in (1, 2)]
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(node), reason=str(refusal)))
            continue
        _rewrite(graph, node, grown)
        outcome.fired += 1
    return outcome


def _grown(attention: ir.Node, index: int) -> ir.Node:
    """The node that puts new keys or values behind those of the past."""
    value = input_of(attention, index)
    what = "keys" if index == 1 else "values"
    node = None if value is None else value.producer()
    if value is None or node is None or not is_standard(node, "Concat") or len(node.inputs) != 2:
        raise Refused(f"the {what} are no sum of past and new ones")
    if int_attribute(node, "axis", 0) not in {_TOKEN_AXIS, _TOKEN_AXIS - 4}:
        raise Refused(f"past and new {what} are put together along another axis than the tokens")
    past, new = node.inputs
    if past is None or new is None or not past.is_graph_input():
        raise Refused(f"the first of the {what} do not come from the cache")
    if consumers(value) != (attention,):
        raise Refused(f"the {what} are read elsewhere")
    if not value.is_graph_output():
        raise Refused(f"the graph does not return the {what}")
    return node


def _rewrite(graph: ir.Graph, attention: ir.Node, grown: Sequence[ir.Node]) -> None:
    result = attention.outputs[0]
    (past_key, key), (past_value, value) = (node.inputs for node in grown)
    inputs = [attention.inputs[0], key, value, input_of(attention, _MASK), past_key, past_value]
    node = ir.node(
        "Attention",
        inputs,
        attributes=dict(attention.attributes),
        num_outputs=3,
        name=f"{node_name(attention)}_cached",
    )
    for made, old in zip(
        node.outputs, (result, *(each.outputs[0] for each in grown)), strict=True
    ):
        made.name = f"{old.name}_cached"
        made.shape, made.type = old.shape, old.type
    graph.insert_before(attention, node)
    _let_go(attention)
    for made, old in zip(
        node.outputs, (result, *(each.outputs[0] for each in grown)), strict=True
    ):
        replace_value(old, made)
    graph.remove((attention, *grown), safe=True)


def _let_go(node: ir.Node) -> None:
    """So that what it read is not read twice."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
