"""Fuse a graph for one ONNX Runtime execution provider, and say which patterns fired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from pipeline.graph.fusions import FusionReport
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class FuseConfig(StageConfig):
    """What to fuse for."""

    execution_provider: Literal["CPUExecutionProvider"] = "CPUExecutionProvider"
    last_logits: bool = Field(
        default=False,
        description="for decoders: an optional input `num_logits_to_keep`, how many last tokens get "
        "logits; 0, which holds when it is not given, means all. Reading a prompt is faster with 1",
    )


def _run(
    config: FuseConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Fuses `model`; facts name each pattern, how often it fired, and why it did not elsewhere.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when operators forbid the opset that a decoder is written in.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.files import load_ir_model, save_ir_model

    model = load_ir_model(inputs["model"] / MODEL_FILE)
    report = fuse_model(model, config, context)
    save_ir_model(model, output)
    return report.as_json()


def fuse_model(model: ir.Model, config: FuseConfig, context: StageContext) -> FusionReport:
    """Fuse a graph in place, and say in the log what fired.

    Raises:
        StageError: when operators forbid the opset that a decoder is written in.
    """
    from pipeline.graph.decoder_fusions import fuse_decoder, is_decoder, last_logits
    from pipeline.graph.fusions import fuse_for_onnxruntime_cpu

    report = fuse_for_onnxruntime_cpu(model)
    if is_decoder(model):
        report = fuse_decoder(model, report)
        if config.last_logits:
            report.outcomes[last_logits.NAME] = last_logits.add_input(model.graph)
    for name, outcome in report.outcomes.items():
        context.log(f"{name}: fired {outcome.fired} times, refused {len(outcome.refused)}")
    return report


FUSE = Stage(
    name="fuse",
    version=3,
    footprint=Footprint(
        base_mib=110,
        memory_per_weight=4.1,
        memory_outside=0.02,
        disk_per_weight=1.0,
        keeps_weights=True,
    ),
    config_type=FuseConfig,
    coverage=("fused_attention",),
    run=_run,
    packages=("onnx", "onnx-ir", "numpy"),
    preload=(
        "pipeline.graph.files",
        "pipeline.graph.fusions",
        "pipeline.graph.decoder_fusions",
    ),
)
"""Port `model` (`model.onnx`) -> `model.onnx` with operators of ONNX Runtime's own domain."""
