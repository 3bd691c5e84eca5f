"""The part of a chain that stores weights in few bits, the same for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.observe_products import (
    MODEL_PORT,
    OBSERVE_PRODUCTS,
    SAMPLES_PORT,
    ObserveProductsConfig,
)
from pipeline.stages.quantize_weights import (
    CALIBRATED,
    MOMENTS_PORT,
    QUANTIZE_WEIGHTS,
    QuantizeWeightsConfig,
)

if TYPE_CHECKING:
    from pipeline.stages.quantize_weights import WeightOnlyOptions
    from pipeline.targets.base import ChainBuilder, NodeRef, Ref


def add_weight_only(
    builder: ChainBuilder,
    component: str,
    options: WeightOnlyOptions,
    *,
    simplified: NodeRef,
    model: NodeRef,
) -> NodeRef:
    """Add the quantising stage, and before it what its method needs.

    Args:
        builder: Of the plan.
        component: The model component.
        options: What was asked for; `mode` of a recipe may be among it.
        simplified: The float graph whose products are observed, so that targets share what is seen.
        model: The graph whose weights are quantised.

    Raises:
        RecipeError: there is no calibration data, and the method needs some.
    """
    config = QuantizeWeightsConfig(
        **options.model_dump(include=set(QuantizeWeightsConfig.model_fields))
    )
    ports: dict[str, Ref] = {"model": model}
    if config.method in CALIBRATED:
        samples = builder.calibration_samples(
            purpose=f"method {config.method} rounds weights by what goes into their products"
        )
        ports[MOMENTS_PORT] = builder.add(
            OBSERVE_PRODUCTS,
            ObserveProductsConfig(),
            {MODEL_PORT: simplified, SAMPLES_PORT: samples},
            component=component,
        )
    return builder.add(QUANTIZE_WEIGHTS, config, ports, component=component)
