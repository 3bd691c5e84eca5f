"""Simplify a graph: constant folding and removal of what does nothing."""

from __future__ import annotations

from typing import Literal

from pipeline.stages.base import StageConfig


class SimplifyConfig(StageConfig):
    """Which tool simplifies."""

    tool: Literal["onnxsim", "onnxslim"] = "onnxsim"
