"""Write attention as the operator `Attention` of ONNX itself (opset 23), and say where it was not.

Port: `model` (simplified). Engines know this operator, which ONNX Runtime's own are not.

Of a decoder, slices that take everything are left out first: behind them the operator takes keys and
values as they are in the cache, each head once for all queries that share it (without: 49 layers in place
of 46 for four layers of Llama). The cache grows outside of the operator: TensorRT-RTX 1.7.1 refuses one
that takes the past and gives the present ("TensorRT only supports Attention nodes with one output").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class FuseAttentionConfig(StageConfig):
    """There is nothing to choose."""


def run(
    config: FuseAttentionConfig,  # noqa: ARG001 - nothing to choose yet; part of the key
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Fuses the attention of `model`; facts say how often, and why not elsewhere.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when an operator would mean something else in opset 23, or the result is not
            valid.
    """
    from pipeline.graph.decoder_fusions import is_decoder, whole_slices
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.graph.fusions.shapes import SymbolicShapes
    from pipeline.graph.standard_attention import write_standard_attention
    from pipeline.graph.validity import require_valid

    model = load_ir_model(inputs["model"] / MODEL_FILE)
    slices = {}
    if is_decoder(model):
        found = whole_slices.remove_whole_slices(model.graph, SymbolicShapes(model.graph))
        slices = {"whole_slices": found.fired}
    outcome = write_standard_attention(model)
    for refusal in outcome.refused:
        context.log(f"{refusal.node} stays as it is: {refusal.reason}")
    require_valid(save_ir_model(model, output))
    return {
        "attention": outcome.as_json(),
        "attention_layers": {"found": outcome.found, "fused": outcome.fired},
        "coverage": {
            "standard_attention": outcome.fired / outcome.found if outcome.found else 0.0
        },
        **slices,
    }


FUSE_ATTENTION = Stage(
    name="fuse_attention",
    version=2,
    footprint=Footprint(base_mib=110, memory_per_weight=4.1, disk_per_weight=1.0),
    config_type=FuseAttentionConfig,
    coverage=("standard_attention",),
    run=run,
    packages=("onnx", "onnx-ir", "numpy"),
    preload=(
        "pipeline.graph.decoder_fusions",
        "pipeline.graph.files",
        "pipeline.graph.standard_attention",
    ),
)
"""Port `model` -> `model.onnx` with `ai.onnx::Attention` in place of its parts."""
