"""Choose the products that get 8 bits where the others have 4.

Ports: `model` (the float graph that will be quantised) and `moments` of what goes into its products.
Output: `bits.json`, which the quantising stage reads; see `pipeline.graph.bit_choice`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import Field, model_validator

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.quantize_weights import (
    BITS_FILE,
    MODEL_PORT,
    MOMENTS_PORT,
    QuantizeWeightsConfig,
    as_request,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

LIMITS: Final = ("bits_budget", "max_noise")


class MixedOptions(StageConfig):
    """How many products get 8 bits where the others have 4."""

    bits_budget: Annotated[float, Field(gt=4, lt=8)] | None = Field(
        default=None,
        description="mean bits of a weight at most, scales not counted; products that lose most "
        "for each bit get 8 of them",
    )
    max_noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="products get 8 bits that would lose more with 4: RMSE of the result over its "
        "size, on `data.calibration`",
    )

    @model_validator(mode="after")
    def _has_one_limit(self) -> Self:
        if sum(getattr(self, name) is not None for name in LIMITS) != 1:
            msg = f"needs one of {' and '.join(LIMITS)}"
            raise ValueError(msg)
        return self


class ChooseBitsConfig(MixedOptions):
    """The same of one quantisation.

    Attributes:
        quantizer: The config of the stage that quantises.
    """

    quantizer: QuantizeWeightsConfig


def run(
    config: ChooseBitsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Write `bits.json`; the facts say what each product loses, worst first, and the mean bits.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when a pattern matches nothing, or the moments of a product are missing.
    """
    from pipeline.calibration.moments import Moments
    from pipeline.graph.bit_choice import choose_by_budget, choose_by_noise, mean_bits, measure
    from pipeline.graph.files import load_ir_model

    model = load_ir_model(inputs[MODEL_PORT] / MODEL_FILE)
    measured = measure(model, as_request(config.quantizer), Moments(inputs[MOMENTS_PORT]))
    if config.bits_budget is not None:
        chosen = choose_by_budget(measured, config.bits_budget)
    elif config.max_noise is not None:
        chosen = choose_by_noise(measured, config.max_noise)
    else:
        raise ValueError("no limit")
    wide = [layer for each in chosen if each.bits == 8 for layer in each.layers]
    if not wide:
        context.log("no product gets 8 bits")
    (output / BITS_FILE).write_text(json.dumps({"eight_bits": wide}, indent=1) + "\n", "utf-8")
    ranked = sorted(chosen, key=lambda each: (-each.noise[4], each.layers))
    rows: list[JSON] = [
        {
            "layers": list(each.layers),
            "bits": each.bits,
            "weights": each.weights,
            "noise_with_4": each.noise[4],
            "noise_with_8": each.noise[8],
        }
        for each in ranked
    ]
    return {
        "products": len(chosen),
        "eight_bits": len(wide),
        "bits_per_weight": mean_bits(chosen),
        "layers": rows,
    }


CHOOSE_BITS = Stage(
    name="choose_bits",
    version=2,
    footprint=Footprint(base_mib=200, memory_per_weight=1.0),
    config_type=ChooseBitsConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "scipy"),
    # The last bits of a loss depend on the instruction set.
    machine=("cpu_flags",),
    preload=("pipeline.graph.files", "pipeline.graph.bit_choice"),
)
"""Ports `model` and `moments` -> `bits.json`."""
