"""Own rewrite rules that make an exported graph fast on ONNX Runtime's CPU execution provider.

Every fusion proves its conditions on symbolic shapes and refuses, with a reason, what it cannot
prove; the rewritten graph equals the old one wherever that one is defined, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.fusions import attention, layer_norm, linear
from pipeline.graph.fusions.shapes import SymbolicShapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.outcome import Outcome
    from pipeline.hashing import JSON

__all__ = ["FusionReport", "fuse_for_onnxruntime_cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionReport:
    """What all fusions did to one graph, by the name of the fusion."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def as_json(self) -> dict[str, JSON]:
        """The facts of the fuse stage."""
        found = self.outcomes[attention.NAME]
        share = found.fired / found.found if found.found else 0.0
        return {
            "fusions": {name: outcome.as_json() for name, outcome in self.outcomes.items()},
            "attention_layers": {"found": found.found, "fused": found.fired},
            "coverage": {"fused_attention": share},
        }


def fuse_for_onnxruntime_cpu(model: ir.Model) -> FusionReport:
    """Fuses the main graph of a model in place, and removes what is no longer used.

    Args:
        model: ONNX opset 13 or later; a graph that is already fused is left as it is.

    Returns:
        What fired, and what did not and why.
    """
    # The rules look for constants among the initializers only.
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    outcomes: dict[str, Outcome] = {}
    outcomes[linear.NAME] = linear.fuse_linear(graph, SymbolicShapes(graph))
    outcomes[attention.NAME] = attention.fuse_attention(graph, SymbolicShapes(graph))
    _remove_unused(model)
    # The output projection had the transposed heads before it; now it has the fused result.
    again = linear.fuse_linear(graph, SymbolicShapes(graph))
    again.fired += outcomes[linear.NAME].fired
    outcomes[linear.NAME] = again
    _remove_unused(model)
    outcomes[layer_norm.NAME] = layer_norm.fuse_skip_layer_norm(graph, SymbolicShapes(graph))
    _remove_unused(model)
    return FusionReport(outcomes=outcomes)


def _remove_unused(model: ir.Model) -> None:
    RemoveUnusedNodesPass()(model)
