"""The part of a chain that stores weights in few bits, the same for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.choose_bits import CHOOSE_BITS, ChooseBitsConfig
from pipeline.stages.fuse_and_quantize import FUSE_AND_QUANTIZE, FuseAndQuantizeConfig
from pipeline.stages.observe_products import (
    MODEL_PORT,
    OBSERVE_PRODUCTS,
    SAMPLES_PORT,
    ObserveProductsConfig,
)
from pipeline.stages.quantize_weights import (
    BITS_PORT,
    CALIBRATED,
    MOMENTS_PORT,
    QUANTIZE_WEIGHTS,
    SCALED,
    QuantizeWeightsConfig,
    WeightOnlyOptions,
)
from pipeline.stages.scale_channels import SCALE_CHANNELS, ScaleChannelsConfig

if TYPE_CHECKING:
    from pipeline.stages.simplify_and_fuse import SimplifyAndFuseConfig
    from pipeline.targets.base import ChainBuilder, NodeRef, Ref


def add_weight_only(
    builder: ChainBuilder,
    component: str,
    options: WeightOnlyOptions,
    *,
    simplified: NodeRef,
    model: NodeRef,
    signed_scales: bool = False,
) -> NodeRef:
    """Add the quantising stage, and before it what its method needs.

    Args:
        builder: Of the plan.
        component: The model component.
        options: What was asked for; `mode` of a recipe may be among it.
        simplified: The float graph whose products are observed, so that targets share what is seen.
        model: The graph whose weights are quantised.
        signed_scales: Whether scales may be negative.

    Raises:
        RecipeError: there is no calibration data, and the method needs some.
    """
    fields = options.model_dump(include=set(QuantizeWeightsConfig.model_fields))
    method = "clip" if options.method == SCALED else options.method
    config = QuantizeWeightsConfig(**(fields | {"method": method, "signed_scales": signed_scales}))
    ports: dict[str, Ref] = {"model": model}
    mixed = getattr(options, "mixed", None)
    if config.method in CALIBRATED or mixed is not None:
        moments = _observed(builder, component, options, simplified)
    if config.method in CALIBRATED:
        ports[MOMENTS_PORT] = moments
    if mixed is not None:
        choice = ChooseBitsConfig(**mixed.model_dump(), quantizer=config)
        seen: dict[str, Ref] = {"model": model, MOMENTS_PORT: moments}
        ports[BITS_PORT] = builder.add(CHOOSE_BITS, choice, seen, component=component)
    return builder.add(QUANTIZE_WEIGHTS, config, ports, component=component)


def add_from_export(
    builder: ChainBuilder,
    component: str,
    options: WeightOnlyOptions,
    *,
    exported: NodeRef,
    first: SimplifyAndFuseConfig,
    signed_scales: bool,
) -> NodeRef:
    """Add one stage that does all that lies between a large exported graph and its weights in few bits.

    Args:
        builder: Of the plan.
        component: The model component.
        options: What was asked for; what goes into products is not observed.
        exported: The exported graph.
        first: How it is simplified and fused.
        signed_scales: Whether scales may be negative.
    """
    fields = options.model_dump(include=set(QuantizeWeightsConfig.model_fields))
    config = FuseAndQuantizeConfig(**fields, first=first, signed_scales=signed_scales)
    return builder.add(FUSE_AND_QUANTIZE, config, {"model": exported}, component=component)


def observes(options: object) -> bool:
    """Whether weights are rounded, scaled or given bits by what goes into their products.

    Args:
        options: The `quantization` of a target, of whatever kind.
    """
    return isinstance(options, WeightOnlyOptions) and (
        options.method in {*CALIBRATED, SCALED} or getattr(options, "mixed", None) is not None
    )


def add_scaling(
    builder: ChainBuilder,
    component: str,
    options: object,
    simplified: NodeRef,
) -> NodeRef:
    """Add the scaling of channels where the method asks for it; `simplified` itself where not.

    Args:
        builder: Of the plan.
        component: The model component.
        options: The `quantization` of a target, of whatever kind.
        simplified: The float graph.

    Raises:
        RecipeError: there is no calibration data, and the method needs some.
    """
    if not isinstance(options, WeightOnlyOptions) or options.method != SCALED:
        return simplified
    config = ScaleChannelsConfig(bits=options.bits, block_size=options.block_size)
    moments = _observed(builder, component, options, simplified)
    ports: dict[str, Ref] = {"model": simplified, MOMENTS_PORT: moments}
    return builder.add(SCALE_CHANNELS, config, ports, component=component)


def _observed(
    builder: ChainBuilder, component: str, options: WeightOnlyOptions, simplified: NodeRef
) -> NodeRef:
    rounds = (
        f"method {options.method} rounds weights"
        if options.method in {*CALIBRATED, SCALED}
        else "bits are chosen"
    )
    samples = builder.calibration_samples(purpose=f"{rounds} by what goes into their products")
    ports: dict[str, Ref] = {MODEL_PORT: simplified, SAMPLES_PORT: samples}
    return builder.add(OBSERVE_PRODUCTS, ObserveProductsConfig(), ports, component=component)
