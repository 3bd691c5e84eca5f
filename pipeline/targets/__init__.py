"""The explicit list of targets; a new runtime is a new file here and a name in `AnyTarget`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.targets.existing import ExistingTarget
from pipeline.targets.onnxruntime import OnnxRuntimeTarget
from pipeline.targets.tensorrt import TensorRTTarget
from pipeline.targets.tensorrt_rtx import TensorRTRTXTarget

AnyTarget = Annotated[
    OnnxRuntimeTarget | TensorRTRTXTarget | TensorRTTarget | ExistingTarget,
    Field(discriminator="runtime"),
]
