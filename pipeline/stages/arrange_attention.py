"""Write attention as TensorRT computes it best: small masks, and one product for Q, K and V.

It would keep the repetition in masks in memory at full size, and write each of the three products with a
kernel of its own. Port: `model` (simplified). Numbers stay the same; see `pipeline.graph.small_masks` and
`pipeline.graph.merged_heads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class ArrangeAttentionConfig(StageConfig):
    """There is nothing to choose."""


def run(
    config: ArrangeAttentionConfig,  # noqa: ARG001 - nothing to choose; part of the key
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Shrinks the masks and merges the products of `model`; facts name both.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when the result is not valid.
    """
    from pipeline.graph.files import load_graph_only, load_ir_model, save_ir_model
    from pipeline.graph.interface import require_same_interface
    from pipeline.graph.merged_heads import merge_heads
    from pipeline.graph.small_masks import shrink_masks
    from pipeline.graph.validity import require_valid

    source = inputs["model"] / MODEL_FILE
    model = load_ir_model(source)
    shrunk = shrink_masks(model)
    merged = merge_heads(model)
    context.progress(1, 2, "steps")
    path = save_ir_model(model, output)
    require_valid(path)
    require_same_interface(load_graph_only(source), load_graph_only(path))
    context.progress(2, 2, "steps")
    return {"smaller_masks": list(shrunk), "merged_products": [list(names) for names in merged]}


ARRANGE_ATTENTION = Stage(
    name="arrange_attention",
    version=3,
    footprint=Footprint(base_mib=110, memory_per_weight=4.1, disk_per_weight=1.0),
    config_type=ArrangeAttentionConfig,
    run=run,
    packages=("numpy", "onnx", "onnx-ir"),
    preload=(
        "pipeline.graph.files",
        "pipeline.graph.merged_heads",
        "pipeline.graph.small_masks",
    ),
)
"""Port `model` -> the same model with masks that broadcast and one product for Q, K and V."""
