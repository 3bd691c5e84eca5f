"""The part of every quantised chain that looks at layers one by one and gives the worst ones back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import StageConfig
from pipeline.stages.given_back import REPAIR_PORT
from pipeline.stages.repair import REPAIR, SENSITIVITY_PORT, RepairConfig, RepairOptions
from pipeline.stages.sensitivity import SENSITIVITY, SensitivityConfig, SensitivityOptions
from pipeline.stages.variants import SAMPLES_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
    from pipeline.stages.quantize_static import QuantizeStaticConfig
    from pipeline.targets.base import ChainBuilder, Ref

REPAIRABLE_KEYS = frozenset({"sensitivity", "repair"})
"""What a recipe says of a quantisation that the quantising stage is not told."""


class Repairable(StageConfig):
    """What a recipe may say about single layers, whatever quantises them."""

    sensitivity: SensitivityOptions | None = Field(
        default=None,
        description="measure what each layer loses by its 8 bits; a repair does so anyway",
    )
    repair: RepairOptions | None = Field(
        default=None,
        description="give the worst layers back to float until a limit holds on calibration samples",
        examples=[{"max_noise": 0.05}],
    )


def add_repair(
    builder: ChainBuilder,
    component: str,
    options: Repairable,
    quantizer: QuantizeDynamicConfig | QuantizeStaticConfig,
    ports: Mapping[str, Ref],
    optimizations: Literal["disabled", "all"],
) -> dict[str, Ref]:
    """Add what was asked for, and give the ports of the quantising stage with what it needs of it.

    Layers are tried on calibration samples: whoever chooses layers by the evaluation samples has
    nothing left to be judged on.

    Args:
        builder: Of the plan.
        component: The model component.
        options: What was asked for.
        quantizer: The config of the stage that will quantise.
        ports: Its ports: `model`, and `ranges` of a static quantisation.
        optimizations: As its graph is validated.

    Raises:
        RecipeError: there is no calibration data.
    """
    if options.sensitivity is None and options.repair is None:
        return dict(ports)
    samples = builder.calibration_samples(purpose="layers are tried out on samples of their own")
    chosen = options.sensitivity or SensitivityOptions()
    sensitivity = SensitivityConfig(
        **chosen.model_dump(), quantizer=quantizer, optimizations=optimizations
    )
    tried = {**ports, SAMPLES_PORT: samples}
    measured = builder.add(SENSITIVITY, sensitivity, tried, component=component)
    if options.repair is None:
        return dict(ports)
    repair = RepairConfig(
        **options.repair.model_dump(),
        quantizer=quantizer,
        optimizations=optimizations,
        task=builder.task_name,
    )
    repaired = builder.add(
        REPAIR, repair, {**tried, SENSITIVITY_PORT: measured}, component=component
    )
    return {**ports, REPAIR_PORT: repaired}
