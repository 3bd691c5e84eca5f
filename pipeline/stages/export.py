"""Export one component of a checkpoint to an ONNX graph."""

from __future__ import annotations

from pipeline.stages.base import StageConfig


class ExportOptions(StageConfig):
    """What a recipe may say about the export."""

    opset: int = 20


class ExportConfig(ExportOptions):
    """What the export stage is told."""

    task: str
    component: str
