"""TensorRT-RTX engines, built ahead of time and without a GPU."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.stages.cast import CastConfig
from pipeline.stages.simplify import SimplifyConfig
from pipeline.targets.base import TargetBase

ComputeCapability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


class TensorRTRTXTarget(TargetBase):
    """One engine for each compute capability, with the ONNX graph it was built from."""

    runtime: Literal["tensorrt-rtx"]
    precision: Literal["fp16"]
    compute_capability: Annotated[tuple[ComputeCapability, ...], Field(min_length=1)]
    simplify: SimplifyConfig = SimplifyConfig()
    cast: CastConfig = CastConfig()
