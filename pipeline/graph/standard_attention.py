"""Scaled dot-product attention -> one `Attention` of ONNX itself, opset 23.

    softmax(scale * Q K^T + mask) V,  with Q, K and V (batch, heads, length, size)

For engines, which know this operator and fuse it, and not those of ONNX Runtime. Conditions, in this
order: those of `pipeline.graph.fusions.attention_scores` on what stands between the products; Q, K
and V have their heads on an axis of their own, whatever was done to them before (rotary positions);
masks broadcast to the scores. Heads of K and V that were repeated for groups of Q's heads are given
once. What stands around the operator stays: it writes (batch, heads, length, size).

A mask goes in as numbers that are added, none lower than -1e30, so that a row that is masked altogether
gives what it gave before: the mean of the values for a finite mask, zeros for an infinite one behind
a guard against NaN. What the operator itself makes of such rows changed after it was released.

Source: `Attention` of ONNX opset 23, onnx 1.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions.attention import is_attention_candidate
from pipeline.graph.fusions.attention_mask import MaskBuilder, check_mask
from pipeline.graph.fusions.attention_operands import Operands, read_operands
from pipeline.graph.fusions.attention_scores import Scores, read_guard, read_scores
from pipeline.graph.fusions.matching import GraphEditor, node_name, replace_value
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused
from pipeline.graph.fusions.shapes import SymbolicShapes
from pipeline.graph.opsets import raise_opset

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET: Final = 23
"""The first with `Attention`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Everything that the operator needs, proven."""

    product: ir.Node
    scores: Scores
    is_guarded: bool
    operands: Operands

    @property
    def scale(self) -> float:
        return self.scores.scale * self.operands.scale


def write_standard_attention(model: ir.Model) -> Outcome:
    """Rewrites every attention of the main graph that fulfils the conditions, in place.

    Args:
        model: Any opset from which 23 can be declared; without attention it is left alone.

    Raises:
        StageError: when an operator would mean something else in opset 23.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    shapes = SymbolicShapes(graph)
    outcome = Outcome()
    writer = _Writer(graph, shapes)
    for softmax in [node for node in graph if is_attention_candidate(node)]:
        try:
            found = _match(softmax, shapes)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(softmax), reason=str(refusal)))
            continue
        raise_opset(model, OPSET)
        writer.write(found)
        outcome.fired += 1
    RemoveUnusedNodesPass()(model)
    return outcome


def _match(softmax: ir.Node, shapes: SymbolicShapes) -> _Found:
    scores = read_scores(softmax, shapes)
    is_guarded, product = read_guard(softmax, shapes)
    found = _Found(
        product=product,
        scores=scores,
        is_guarded=is_guarded,
        operands=read_operands(scores.product, product, shapes),
    )
    if not found.scale > 0:
        # The operator multiplies both factors with its square root.
        raise Refused(f"the scores are multiplied with {found.scale:g}")
    check_mask(scores, found.operands.scores, shapes, is_guarded=is_guarded)
    return found


class _Writer:
    """Puts the operator in place of what was proven."""

    def __init__(self, graph: ir.Graph, shapes: SymbolicShapes) -> None:
        self._editor = GraphEditor(graph)
        self._shapes = shapes
        self._masks = MaskBuilder(self._editor, shapes, has_heads=True)

    def write(self, found: _Found) -> None:
        before, operands = found.product, found.operands
        product = before.outputs[0]
        key = self._ordered(operands, before)
        inputs: list[ir.Value | None] = [operands.query, key, operands.value]
        if found.scores.masks:
            mask = self._masks.bias(
                found.scores, (operands.query, key), before, is_guarded=found.is_guarded
            )
            inputs.append(self._with_four_axes(mask, before))
        result = self._editor.insert(
            before,
            "Attention",
            inputs,
            output=f"{product.name}_attention",
            attributes={"scale": found.scale},
        )
        result.shape = product.shape
        if product.dtype is not None:
            result.dtype = product.dtype
        if found.is_guarded:
            result = self._masks.zero_masked_rows(found.scores, result, before)
        replace_value(product, result)

    def _ordered(self, operands: Operands, before: ir.Node) -> ir.Value:
        if not operands.key_order:
            return operands.key
        return self._editor.insert(
            before,
            "Transpose",
            [operands.key],
            output=f"{operands.key.name}_heads",
            attributes={"perm": operands.key_order},
        )

    def _with_four_axes(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        missing = 4 - len(self._shapes.of(mask) or (None,) * 4)
        if not missing:
            return mask
        axes = self._editor.integers(range(missing))
        return self._editor.insert(
            before, "Unsqueeze", [mask, axes], output=f"{mask.name}_four_axes"
        )
