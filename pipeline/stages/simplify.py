"""Simplify a graph: constant folding and removal of what does nothing.

Port: `model`. The output has the same inputs, outputs, named axes and opset, and is checked to be
valid ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.graph.simplification import Tool
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
    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.inspect import count_ops
    from pipeline.graph.interface import require_same_interface
    from pipeline.graph.validity import require_valid

    source = inputs["model"] / MODEL_FILE
    path = _write_simplified(config.tool, source, output)
    context.progress(1, 2, "steps")
    # What is checked is the file as it was written, against the file as it was given.
    require_valid(path)
    given, written = load_graph_only(source), load_graph_only(path)
    require_same_interface(given, written)
    require_live_inputs(written)
    before, after = count_ops(given), count_ops(written)
    context.progress(2, 2, "steps")
    return simplification_facts(config.tool, before, after)


def simplification_facts(
    tool: Tool, before: Mapping[str, int], after: Mapping[str, int]
) -> dict[str, JSON]:
    """What a tool made of a graph, by how often each operator is there before and after."""
    from importlib.metadata import version

    return {
        "tool": tool,
        "tool_version": version(tool),
        "nodes_before": sum(before.values()),
        "nodes_after": sum(after.values()),
        "ops_before": dict(before),
        "ops_after": dict(after),
    }


def _write_simplified(tool: Tool, source: Path, output: Path) -> Path:
    """Weights outside of the model file are not read into memory: see `graph.large_weights`."""
    from pipeline.graph.files import load_ir_model, load_model, save_ir_model, save_model
    from pipeline.graph.large_weights import edit_without_weights, has_outside_weights
    from pipeline.graph.simplification import simplify_model

    if (source.parent / EXTERNAL_DATA_FILE).exists():
        model = load_ir_model(source)
        if has_outside_weights(model):
            edited = edit_without_weights(model, lambda graph: simplify_model(graph, tool))
            return save_ir_model(edited, output)
    return save_model(simplify_model(load_model(source), tool), output)


SIMPLIFY = Stage(
    name="simplify",
    version=2,
    footprint=Footprint(
        base_mib=300,
        memory_per_weight=6.2,
        memory_outside=0.15,
        disk_per_weight=1.0,
        keeps_weights=True,
    ),
    config_type=SimplifyConfig,
    run=_run,
    packages=("numpy", "onnx", "onnx-ir", "onnxsim", "onnxslim", "onnxruntime"),
    preload=("pipeline.graph.simplification", "pipeline.graph.interface"),
)
