"""Scale channels before weights are rounded, so that those which matter most lose least (AWQ).

Ports: `model` (`model.onnx` in float32, simplified) and `moments` of what goes into its products. The graph
computes the same numbers as before; see `pipeline.graph.channel_scaling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.quantize_weights import BlockSize, WeightBits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
MOMENTS_PORT = "moments"


class ScaleChannelsConfig(StageConfig):
    """How weights will be rounded, as `pipeline.stages.quantize_weights.WeightOnlyOptions` has it."""

    bits: WeightBits
    block_size: BlockSize | None


def run(
    config: ScaleChannelsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Write the model with scaled channels; facts name what was scaled.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when moments are missing.
        StageError: when the result is not valid.
    """
    from pipeline.calibration.moments import Moments
    from pipeline.graph.channel_scaling import ScalingRequest, scale_channels
    from pipeline.graph.files import load_graph_only, load_ir_model, save_ir_model
    from pipeline.graph.interface import require_same_interface
    from pipeline.graph.validity import require_valid

    source = inputs[MODEL_PORT] / MODEL_FILE
    model = load_ir_model(source)
    moments = Moments(inputs[MOMENTS_PORT])
    request = ScalingRequest(**config.model_dump())
    scaled = scale_channels(model, moments, request, threads=context.threads)
    context.progress(1, 2, "steps")
    path = save_ir_model(model, output)
    require_valid(path)
    require_same_interface(load_graph_only(source), load_graph_only(path))
    context.progress(2, 2, "steps")
    if not scaled:
        context.log("no scaling of channels loses less than none: the model is as it was")
    return {
        "scaled": [
            {
                "source": each.source,
                "products": list(each.products),
                "power": each.power,
                "largest": each.largest,
                "loss_ratio": each.loss_ratio,
            }
            for each in scaled
        ],
        "samples": moments.index.samples,
    }


SCALE_CHANNELS = Stage(
    name="scale_channels",
    version=4,
    footprint=Footprint(base_mib=200, memory_per_weight=4.1, disk_per_weight=1.0),
    config_type=ScaleChannelsConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "scipy"),
    # The last bits of a loss depend on the instruction set.
    machine=("cpu_flags",),
    preload=("pipeline.graph.files", "pipeline.graph.channel_scaling"),
)
"""Ports `model` and `moments` -> the same model with scaled channels."""
