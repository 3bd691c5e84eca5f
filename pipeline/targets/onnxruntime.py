"""ONNX Runtime on the CPU: fp32 and dynamic INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.targets.base import Deliverable, ModelLink, TargetBase, TargetChain

if TYPE_CHECKING:
    from pipeline.targets.base import ChainBuilder


class DynamicQuantization(QuantizeDynamicConfig):
    """INT8 weights; activation scales are taken at run time, over each batch."""

    mode: Literal["dynamic"]


class OnnxRuntimeTarget(TargetBase):
    """A model for ONNX Runtime's CPU execution provider."""

    runtime: Literal["onnxruntime"]
    precision: Literal["fp32", "int8"]
    quantization: DynamicQuantization | None = Field(default=None, description="for int8")
    simplify: SimplifyConfig = SimplifyConfig()
    fuse: FuseConfig = FuseConfig()

    @model_validator(mode="after")
    def _quantization_fits_precision(self) -> Self:
        if (self.precision == "int8") != (self.quantization is not None):
            msg = (
                "precision int8 needs `quantization: {mode: dynamic}`"
                if self.precision == "int8"
                else f"precision {self.precision} takes no `quantization`"
            )
            raise ValueError(msg)
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
                ModelLink(node=exported, optimizations="disabled"),
                ModelLink(node=simplified, optimizations="disabled"),
                ModelLink(node=last, optimizations="all"),
            ]
            if self.quantization is not None:
                options = self.quantization.model_dump(exclude={"mode"})
                config = QuantizeDynamicConfig(**options)
                last = builder.add(QUANTIZE_DYNAMIC, config, {"model": last}, component=component)
                links.append(ModelLink(node=last, optimizations="all"))
            models[component] = tuple(links)
            deliverables[component] = (Deliverable(node=last),)
        return TargetChain(models=models, deliverables=deliverables, runtime="onnxruntime")
