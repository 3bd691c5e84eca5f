"""Cast a graph to float16, keeping the reductions that need it in float32."""

from __future__ import annotations

from typing import Literal

from pipeline.stages.base import StageConfig


class CastConfig(StageConfig):
    """What to cast to."""

    precision: Literal["fp16"] = "fp16"
