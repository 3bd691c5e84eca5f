"""ONNX Runtime on the CPU: fp32, INT8 with scales taken at run time or beforehand, INT4 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_static import (
    QUANTIZE_STATIC,
    OnnxRuntimeStaticOptions,
    QuantizeStaticConfig,
)
from pipeline.stages.quantize_weights import (
    QUANTIZE_WEIGHTS,
    QuantizeWeightsConfig,
    WeightOnlyOptions,
)
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.targets.base import Deliverable, ModelLink, TargetBase, TargetChain
from pipeline.targets.repairing import REPAIRABLE_KEYS, Repairable, add_repair

if TYPE_CHECKING:
    from pipeline.targets.base import ChainBuilder, NodeRef


class DynamicQuantization(QuantizeDynamicConfig, Repairable):
    """INT8 weights; activation scales are taken at run time, over each batch."""

    mode: Literal["dynamic"]


class StaticQuantization(CalibrateConfig, OnnxRuntimeStaticOptions, Repairable):
    """INT8 weights; activation scales are taken beforehand, from `data.calibration`."""

    mode: Literal["static"]


class WeightOnlyQuantization(WeightOnlyOptions):
    """INT4 or INT8 weights and nothing else; ONNX Runtime picks the kernels when it loads them."""

    mode: Literal["weight_only"]


Quantization = Annotated[
    DynamicQuantization | StaticQuantization | WeightOnlyQuantization, Field(discriminator="mode")
]


class OnnxRuntimeTarget(TargetBase):
    """A model for ONNX Runtime's CPU execution provider."""

    runtime: Literal["onnxruntime"]
    precision: Literal["fp32", "int8", "int4"]
    quantization: Quantization | None = Field(default=None, description="for int8 and int4")
    simplify: SimplifyConfig = SimplifyConfig()
    fuse: FuseConfig = FuseConfig()

    @model_validator(mode="after")
    def _quantization_fits_precision(self) -> Self:
        fault = _precision_fault(self.precision, self.quantization)
        if fault:
            raise ValueError(fault)
        return self

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Export, simplify, fuse, and quantise when asked to."""
        models: dict[str, tuple[ModelLink, ...]] = {}
        deliverables: dict[str, tuple[Deliverable, ...]] = {}
        for component in builder.components:
            exported = builder.exported(component)
            simplified = builder.add(
                SIMPLIFY, self.simplify, {"model": exported}, component=component
            )
            last = builder.add(FUSE, self.fuse, {"model": simplified}, component=component)
            # Before fusion a graph is compared as it is written; afterwards as users will run it.
            links = [
                ModelLink(node=exported, optimizations="disabled", arithmetic="float32"),
                ModelLink(node=simplified, optimizations="disabled", arithmetic="float32"),
                ModelLink(node=last, optimizations="all", arithmetic="float32"),
            ]
            if self.quantization is not None:
                last = self._quantized(builder, component, simplified, last)
                links.append(ModelLink(node=last, optimizations="all", arithmetic="quantized"))
            models[component] = tuple(links)
            deliverables[component] = (Deliverable(node=last),)
        return TargetChain(models=models, deliverables=deliverables, runtime="onnxruntime")

    def _quantized(
        self, builder: ChainBuilder, component: str, simplified: NodeRef, fused: NodeRef
    ) -> NodeRef:
        options = self.quantization
        if isinstance(options, StaticQuantization):
            calibrate, quantize = _static_configs(options)
            ports = {"model": simplified, "samples": builder.calibration_samples()}
            # Of the simplified graph, so that every target of one recipe shares the ranges.
            ranges = builder.add(CALIBRATE, calibrate, ports, component=component)
            ports = {"model": fused, "ranges": ranges}
            repaired = add_repair(builder, component, options, quantize, ports, "all")
            return builder.add(QUANTIZE_STATIC, quantize, repaired, component=component)
        if options is None:
            raise ValueError("this target is not quantised")
        if isinstance(options, WeightOnlyQuantization):
            weights = QuantizeWeightsConfig(**options.model_dump(exclude={"mode"}))
            return builder.add(QUANTIZE_WEIGHTS, weights, {"model": fused}, component=component)
        config = QuantizeDynamicConfig(**options.model_dump(exclude={"mode", *REPAIRABLE_KEYS}))
        repaired = add_repair(builder, component, options, config, {"model": fused}, "all")
        return builder.add(QUANTIZE_DYNAMIC, config, repaired, component=component)


def _precision_fault(precision: str, quantization: Quantization | None) -> str:
    """Why a precision and a quantisation do not fit each other; empty when they do."""
    if precision == "fp32":
        return "" if quantization is None else "precision fp32 takes no `quantization`"
    if precision == "int4":
        if isinstance(quantization, WeightOnlyQuantization) and quantization.bits == 4:
            return ""
        return (
            "precision int4 needs `quantization: {mode: weight_only}` with `bits: 4`, its default"
        )
    if quantization is None:
        return (
            "precision int8 needs `quantization: {mode: dynamic}`, `{mode: static}` or "
            "`{mode: weight_only, bits: 8}`"
        )
    if isinstance(quantization, WeightOnlyQuantization) and quantization.bits != 8:
        return "precision int8 needs `bits: 8` with `mode: weight_only`"
    return ""


def _static_configs(options: StaticQuantization) -> tuple[CalibrateConfig, QuantizeStaticConfig]:
    fields = options.model_dump(exclude={"mode", *REPAIRABLE_KEYS})
    ranges = {name: fields.pop(name) for name in CalibrateConfig.model_fields}
    return CalibrateConfig(**ranges), QuantizeStaticConfig(placement="onnxruntime-cpu", **fields)
