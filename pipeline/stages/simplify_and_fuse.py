"""Simplify a large graph and fuse it, with its weights written once.

Port: `model` (`model.onnx`, weights in a file of their own). The output is what stages `simplify` and
`fuse` make one after the other, where nothing else wants the graph between them. Either writes all weights
and changes none: gigabytes, a comparison with the checkpoint that takes as long, and no more to learn
than that one of two edits went wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.fuse import FUSE, FuseConfig, fuse_model
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig, simplification_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class SimplifyAndFuseConfig(StageConfig):
    """The configs of the two stages."""

    simplify: SimplifyConfig = Field(default=SimplifyConfig(), description="as of stage simplify")
    fuse: FuseConfig = Field(default=FuseConfig(), description="as of stage fuse")


def _run(
    config: SimplifyAndFuseConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Facts are those of `fuse`, and under `simplified` those of `simplify`.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when the simplified graph is not valid or has another outside, or operators forbid
            the opset that a decoder is written in.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import load_graph_only, save_ir_model

    model, facts = simplified_and_fused(config, inputs["model"] / MODEL_FILE, context)
    context.progress(2, 3, "steps")
    require_live_inputs(load_graph_only(save_ir_model(model, output)))
    context.progress(3, 3, "steps")
    return facts


def simplified_and_fused(
    config: SimplifyAndFuseConfig, source: Path, context: StageContext
) -> tuple[ir.Model, dict[str, JSON]]:
    """The graph, whose large weights are still those of `source`; and the facts.

    Raises:
        ArtifactError: when the input is no model.
        StageError: see `_run`.
    """
    from pipeline.graph.files import load_graph_only, load_ir_model
    from pipeline.graph.inspect import count_ops
    from pipeline.graph.large_weights import edit_without_weights
    from pipeline.graph.simplification import simplify_checked

    before = count_ops(load_graph_only(source))
    tool = config.simplify.tool
    # Large weights are inputs meanwhile.
    model = edit_without_weights(
        load_ir_model(source), lambda graph: simplify_checked(graph, tool)
    )
    context.progress(1, 3, "steps")
    after: dict[str, int] = {}
    for node in model.graph.all_nodes():
        after[node.op_type] = after.get(node.op_type, 0) + 1
    report = fuse_model(model, config.fuse, context)
    facts = simplification_facts(tool, before, dict(sorted(after.items())))
    return model, {**report.as_json(), "simplified": facts}


SIMPLIFY_AND_FUSE = Stage(
    name="simplify_and_fuse",
    version=1,
    footprint=Footprint(
        base_mib=300,
        memory_per_weight=6.2,
        memory_outside=0.15,
        disk_per_weight=1.0,
        keeps_weights=True,
    ),
    config_type=SimplifyAndFuseConfig,
    coverage=FUSE.coverage,
    run=_run,
    packages=tuple(dict.fromkeys((*SIMPLIFY.packages, *FUSE.packages))),
    preload=tuple(dict.fromkeys((*SIMPLIFY.preload, *FUSE.preload))),
)
"""Port `model` (`model.onnx`) -> `model.onnx` with operators of ONNX Runtime's own domain."""
