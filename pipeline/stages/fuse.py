"""Fuse a graph for one ONNX Runtime execution provider, and say which patterns fired."""

from __future__ import annotations

from typing import Literal

from pipeline.stages.base import StageConfig


class FuseConfig(StageConfig):
    """What to fuse for."""

    execution_provider: Literal["CPUExecutionProvider"] = "CPUExecutionProvider"
