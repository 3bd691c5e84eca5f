"""Simplify a graph: constant folding and removal of what does nothing.

Port: `model`. The output has the same inputs, outputs, named axes and opset, and is checked to be
valid ONNX.
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


class SimplifyConfig(StageConfig):
    """Which tool simplifies."""

    tool: Literal["onnxsim", "onnxslim"] = Field(
        default="onnxsim", description="the tool that folds constants and removes idle nodes"
    )


def _run(
    config: SimplifyConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    from importlib.metadata import version

    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import load_graph_only, load_model, save_model
    from pipeline.graph.inspect import count_ops
    from pipeline.graph.interface import require_same_interface
    from pipeline.graph.simplification import simplify_model
    from pipeline.graph.validity import require_valid

    model = load_model(inputs["model"] / MODEL_FILE)
    before = count_ops(model)
    simpler = simplify_model(model, config.tool)
    del model
    after = count_ops(simpler)
    path = save_model(simpler, output)
    del simpler
    context.progress(1, 2, "steps")
    # What is checked is the file as it was written, against the file as it was given.
    require_valid(path)
    written = load_graph_only(path)
    require_same_interface(load_graph_only(inputs["model"] / MODEL_FILE), written)
    require_live_inputs(written)
    context.progress(2, 2, "steps")
    return {
        "tool": config.tool,
        "tool_version": version(config.tool),
        "nodes_before": sum(before.values()),
        "nodes_after": sum(after.values()),
        "ops_before": before,
        "ops_after": after,
    }


SIMPLIFY = Stage(
    name="simplify",
    version=1,
    footprint=Footprint(base_mib=300, memory_per_weight=6.2, disk_per_weight=1.0),
    config_type=SimplifyConfig,
    run=_run,
    packages=("onnx", "onnx-ir", "onnxsim", "onnxslim", "onnxruntime"),
    preload=("pipeline.graph.simplification", "pipeline.graph.interface"),
)
