"""Cast a graph to float16 or bfloat16, keeping the reductions that need it in float32.

Port: `model`. Inputs and outputs keep their types, so that the same feeds and the same comparison
serve before and after. What stays in float32, and why, is in the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class CastConfig(StageConfig):
    """What to cast to."""

    precision: Literal["fp16", "bf16"] = Field(
        default="fp16", description="the type to compute in"
    )


def _run(
    config: CastConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import load_graph_only, load_ir_model, save_ir_model
    from pipeline.graph.half import cast_to_half
    from pipeline.graph.half_rules import HALF_TYPES
    from pipeline.graph.inspect import count_ops, count_weight_bytes
    from pipeline.graph.interface import require_same_interface
    from pipeline.graph.validity import require_valid

    source = inputs["model"] / MODEL_FILE
    model = load_ir_model(source)
    kind = next(kind for kind in HALF_TYPES if kind.short == config.precision)
    result = cast_to_half(model, kind)
    context.progress(1, 2, "steps")
    path = save_ir_model(model, output)
    del model
    require_valid(path)
    written = load_graph_only(path)
    require_same_interface(load_graph_only(source), written)
    require_live_inputs(written)
    context.progress(2, 2, "steps")
    return {
        "precision": config.precision,
        "coverage": {f"{config.precision}_weights": result.share},
        "kept_in_fp32": [
            {"node": kept.node, "op": kept.op_type, "reason": kept.reason} for kept in result.kept
        ],
        "clamped_constants": list(result.clamped_constants),
        "weights_that_became_zero": result.vanished,
        "cast_nodes_added": result.casts,
        "ops": count_ops(written),
        "weight_bytes": count_weight_bytes(written),
    }


CAST = Stage(
    name="cast",
    version=2,
    footprint=Footprint(base_mib=120, memory_per_weight=4.1, disk_per_weight=0.5),
    config_type=CastConfig,
    coverage=("fp16_weights", "bf16_weights"),
    coverage_of=lambda config: (f"{config.precision}_weights",),
    run=_run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir"),
    preload=("pipeline.graph.half", "pipeline.graph.interface"),
)
