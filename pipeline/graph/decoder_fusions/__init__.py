"""Rewrites a decoder with a key/value cache for ONNX Runtime's CPU: fewer and faster operators, same values.

Four rewrites, in this order:

- `whole_slices`: slices that take everything are left out; exporters write them by the dozen.
- `attention`, `cached_attention`: products, mask, softmax and the growing of the cache -> `Attention` of ONNX opset 23. Heads
  that share keys and values (GQA, MQA) stay shared, past in and present out are the operator's own.
- `rotary`: rotation of queries and keys by their positions -> `RotaryEmbedding` of ONNX opset 23.
- `rms_norm`: -> `RMSNormalization` of ONNX opset 23, with a residual sum before it
  `com.microsoft.SkipSimplifiedLayerNormalization`.

Positions and masks stay what the graph makes of its inputs, so that padding on the left, chunks of a
prompt behind a past, and batches of any size give what they gave before. That is why the operator is not
`com.microsoft.GroupQueryAttention`: ONNX Runtime 1.31 refuses it several new tokens behind a past in a
batch of more than one text ("batch_size must be 1 when sequence_length > 1 and past context is given"),
and its own rotation takes positions of a first prompt to begin at 0, which padding on the left shifts.
Side by side (32 heads, 4 of keys and values, 64 wide) it was no faster than `Attention` either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.decoder_fusions import (
    cached_attention,
    last_logits,
    rms_norm,
    rotary,
    whole_slices,
)
from pipeline.graph.fusions import FusionReport, attention
from pipeline.graph.fusions.shapes import SymbolicShapes
from pipeline.graph.standard_attention import write_standard_attention

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fuse_decoder", "is_decoder", "last_logits"]

PAST = "past_key_values."


def is_decoder(model: ir.Model) -> bool:
    """Whether a graph keeps keys and values in inputs and outputs, by the names of Optimum."""
    return any((value.name or "").startswith(PAST) for value in model.graph.inputs)


def fuse_decoder(model: ir.Model, before: FusionReport) -> FusionReport:
    """Rewrites a decoder in place; a graph that is already rewritten is left as it is.

    Args:
        model: float32, with the names of `pipeline.runtimes.torch_decoder`.
        before: What `fuse_for_onnxruntime_cpu` did to it.

    Returns:
        For each rewrite how often it fired, and where it did not and why, beside those of `before`.
        Attentions that were refused there and fused here count as fused.

    Raises:
        StageError: when an operator of the graph would mean something else in opset 23.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    remove_unused = RemoveUnusedNodesPass()
    outcomes = dict(before.outcomes)
    graph = model.graph
    outcomes[whole_slices.NAME] = whole_slices.remove_whole_slices(graph, SymbolicShapes(graph))
    found = write_standard_attention(model)
    found.fired += outcomes[attention.NAME].fired
    outcomes[attention.NAME] = found
    outcomes[cached_attention.NAME] = cached_attention.absorb_caches(graph)
    remove_unused(model)
    outcomes[rotary.NAME] = rotary.fuse_rotary(model, SymbolicShapes(graph))
    remove_unused(model)
    outcomes[rms_norm.NAME] = rms_norm.fuse_rms_norm(model, SymbolicShapes(graph))
    remove_unused(model)
    outcomes[rms_norm.SKIP] = rms_norm.fuse_skip_rms_norm(graph, SymbolicShapes(graph))
    remove_unused(model)
    return FusionReport(outcomes=outcomes)
