"""Simplify and fuse a large graph and store its weights in few bits, without writing them as floats.

Port: `model` (`model.onnx` as it was exported, weights in a file of their own). The output is what stages
`simplify_and_fuse` and `quantize_weights` make one after the other. It is for recipes that leave out whatever
would look at the float graph between them: gigabytes that are written, read once and never again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage
from pipeline.stages.quantize_weights import (
    MODEL_PORT,
    QUANTIZE_WEIGHTS,
    QuantizeWeightsConfig,
    quantize_model,
)
from pipeline.stages.simplify_and_fuse import (
    SIMPLIFY_AND_FUSE,
    SimplifyAndFuseConfig,
    simplified_and_fused,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class FuseAndQuantizeConfig(QuantizeWeightsConfig):
    """The configs of the two stages."""

    first: SimplifyAndFuseConfig = Field(
        default=SimplifyAndFuseConfig(), description="as of stage simplify_and_fuse"
    )


def _run(
    config: FuseAndQuantizeConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Facts are those of both stages.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: as `quantize_weights`.
        StageError: as either stage.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import structure_of

    model, fused = simplified_and_fused(config.first, inputs[MODEL_PORT] / MODEL_FILE, context)
    require_live_inputs(structure_of(model))
    context.progress(2, 3, "steps")
    quantized = quantize_model(model, config, inputs, output, context)
    context.progress(3, 3, "steps")
    coverage = {}
    for facts in (fused, quantized):
        found = facts["coverage"]
        assert isinstance(found, dict)
        coverage.update(found)
    return {**fused, **quantized, "coverage": coverage}


FUSE_AND_QUANTIZE = Stage(
    name="fuse_and_quantize",
    version=2,
    footprint=Footprint(
        base_mib=400,
        memory_per_weight=6.2,
        memory_outside=0.16,
        memory_per_largest=2.2,
        disk_per_weight=0.3,
        memory_to_run=0.35,
    ),
    config_type=FuseAndQuantizeConfig,
    coverage=(*SIMPLIFY_AND_FUSE.coverage, *QUANTIZE_WEIGHTS.coverage),
    run=_run,
    packages=tuple(dict.fromkeys((*SIMPLIFY_AND_FUSE.packages, *QUANTIZE_WEIGHTS.packages))),
    preload=tuple(dict.fromkeys((*SIMPLIFY_AND_FUSE.preload, *QUANTIZE_WEIGHTS.preload))),
)
"""Port `model` (`model.onnx`) -> fused `model.onnx` with integers and DequantizeLinear behind them."""
