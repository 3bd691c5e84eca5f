"""Scaled dot-product attention -> one `com.microsoft.MultiHeadAttention`.

    softmax(scale * Q K^T + mask) V,  heads split from (batch, length, heads * size) and merged back

The rule works backwards from each Softmax between two products. Conditions, in this order:

1. the softmax is taken over the last axis;
2. what stands between the products is: factors that are one constant number; added masks and
   biases of (batch|1, heads|1, length|1, length|1), or fills with a value so negative that addition
   gives the same; a guard that turns NaN rows into zeros; changes of shape that keep the order;
3. Q, K and V are views of (batch, length, heads * size), with equal batch, heads and lengths;
4. the result is only used with its heads merged back, in (batch, length, heads * size) order.

The sum of the masks goes in as `attention_bias`, which ONNX Runtime adds to the scaled scores just as the graph
does, so a fully masked row gives what it gave before: the mean of the values for a finite mask, NaN
for an infinite one, zeros for an infinite one behind a guard.

Q, K and V stay separate matrix products: they quantise per channel, which ONNX Runtime's packed
`Attention` does as well, but with one activation scale and no kernel faster than this one
(`docs/decisions/0002-attention-fusion.md`).

Source: `MultiHeadAttention` in ONNX Runtime 1.31.1, docs/ContribOperators.md. Its CPU kernel takes
a `scale` of 0 for "not given", and does not broadcast the two last axes of `attention_bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.attention_mask import MaskBuilder, check_mask
from pipeline.graph.fusions.attention_output import Use, merged_uses
from pipeline.graph.fusions.attention_scores import Scores, read_guard, read_scores
from pipeline.graph.fusions.heads import Heads, merged_source, read_heads, same_length
from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.fusions.views import trace

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "attention"

_BETWEEN = frozenset({
    "Add", "Cast", "Clip", "Div", "Dropout", "Expand", "Identity", "IsNaN", "Max", "Min", "Mul",
    "Neg", "Reshape", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that may stand between a product and the softmax in something like attention."""

_REACH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Everything that the fused node needs, proven."""

    softmax: ir.Node
    product: ir.Node
    query: Heads
    key: Heads
    value: Heads
    scores: Scores
    is_guarded: bool
    uses: tuple[Use, ...]

    @property
    def scale(self) -> float:
        """The factor of the scores, wherever the graph applies it."""
        return self.scores.scale * self.query.trace.scale * self.key.trace.scale


def fuse_attention(graph: ir.Graph, shapes: SymbolicShapes) -> Outcome:
    """Fuses every attention of the graph that fulfils the conditions; see the module.

    What is no longer used is left in the graph for the caller to remove.
    """
    outcome = Outcome()
    editor = GraphEditor(graph)
    emitter = _Emitter(editor, shapes)
    for softmax in [node for node in graph if is_attention_candidate(node)]:
        try:
            emitter.emit(match_attention(softmax, shapes))
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(softmax), reason=str(refusal)))
        else:
            outcome.fired += 1
    return outcome


def is_attention_candidate(node: ir.Node) -> bool:
    """Whether a node is a Softmax that something like attention is built around.

    That is: a product of two computed tensors upstream, and a product downstream whose left factor
    comes from the softmax.
    """
    if not is_standard(node, "Softmax"):
        return False
    source = input_of(node, 0)
    return source is not None and _has_product_above(source) and _has_product_below(node)


def _has_product_above(value: ir.Value) -> bool:
    frontier, seen = [value], 0
    while frontier and seen < _REACH:
        node = frontier.pop(0).producer()
        seen += 1
        if node is None:
            continue
        if is_standard(node, "MatMul", "Einsum"):
            right = input_of(node, 1)
            if right is not None and right.const_value is None:
                return True
        elif node.op_type in _BETWEEN:
            frontier.extend(source for source in node.inputs if source is not None)
    return False


def _has_product_below(softmax: ir.Node) -> bool:
    frontier, seen = [softmax.outputs[0]], 0
    while frontier and seen < _REACH:
        value = frontier.pop(0)
        seen += 1
        for reader, index in value.uses():
            if is_standard(reader, "MatMul", "Einsum") and index == 0:
                return True
            if reader.op_type in _BETWEEN:
                frontier.append(reader.outputs[0])
    return False


def match_attention(softmax: ir.Node, shapes: SymbolicShapes) -> Attention:
    """Proves that a candidate is attention.

    Raises:
        Refused: with the first condition that does not hold.
    """
    scores = read_scores(softmax, shapes)
    is_guarded, product = read_guard(softmax, shapes)
    query = read_heads("query", trace(_required(scores.product, 0), shapes))
    key = read_heads("key", trace(_required(scores.product, 1), shapes), is_transposed=True)
    value = read_heads("value", trace(_required(product, 1), shapes))
    if value.trace.scale != 1.0:
        raise Refused("the value is multiplied with a constant behind its projection")
    for other, name in ((key, "query and key"), (value, "query and value")):
        same_length(f"the batch sizes of {name}", query.batch, other.batch)
        same_length(f"the numbers of heads of {name}", query.heads, other.heads)
    same_length("the head sizes of query and key", query.size, key.size)
    same_length("the lengths of key and value", key.length, value.length)
    found = Attention(
        softmax=softmax,
        product=product,
        query=query,
        key=key,
        value=value,
        scores=scores,
        is_guarded=is_guarded,
        uses=merged_uses(product, query, value, shapes),
    )
    if found.scale == 0.0:
        raise Refused("the scores are multiplied with zero")
    full = (query.batch, query.heads, query.length, key.length)
    check_mask(scores, full, shapes, is_guarded=is_guarded)
    for heads in (query, key, value):
        merged_source(heads, shapes)
    return found


def _required(node: ir.Node, index: int) -> ir.Value:
    value = input_of(node, index)
    if value is None:
        raise Refused(f"`{node_name(node)}` lacks input {index}")
    return value


class _Emitter:
    """Puts the fused node in place of what was proven."""

    def __init__(self, editor: GraphEditor, shapes: SymbolicShapes) -> None:
        self._editor = editor
        self._shapes = shapes
        self._masks = MaskBuilder(editor, shapes)

    def emit(self, found: Attention) -> None:
        before = found.product
        query = self._merged(found.query, before)
        key = self._merged(found.key, before)
        inputs: list[ir.Value | None] = [query, key, self._merged(found.value, before)]
        if found.scores.masks:
            bias = self._masks.bias(
                found.scores, (query, key), before, is_guarded=found.is_guarded
            )
            # Between them: bias of the projections, key_padding_mask.
            inputs += [None, None, bias]
        result = self._editor.insert(
            before,
            "MultiHeadAttention",
            inputs,
            output=f"{found.product.outputs[0].name}_attention",
            attributes={"num_heads": found.query.heads.factor, "scale": found.scale},
            domain=CONTRIB_DOMAIN,
        )
        if found.is_guarded:
            result = self._masks.zero_masked_rows(found.scores, result, before)
        for use in found.uses:
            replace_value(use.value, self._reshaped(result, use, before))

    def _merged(self, heads: Heads, before: ir.Node) -> ir.Value:
        value, has_split_heads = merged_source(heads, self._shapes)
        if not has_split_heads:
            return value
        shape = self._editor.integers((0, 0, heads.hidden.factor))
        return self._editor.insert(
            before, "Reshape", [value, shape], output=f"{value.name}_merged"
        )

    def _reshaped(self, result: ir.Value, use: Use, before: ir.Node) -> ir.Value:
        if use.shape is None:
            return result
        return self._editor.insert(
            before,
            "Reshape",
            [result, self._editor.integers(use.shape)],
            output=f"{use.value.name}_view",
        )
