"""ONNX Runtime on the CPU: fp32 and dynamic INT8."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.fuse import FuseConfig
from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
from pipeline.stages.simplify import SimplifyConfig
from pipeline.targets.base import TargetBase


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
