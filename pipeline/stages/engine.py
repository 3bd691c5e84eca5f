"""Build one TensorRT-RTX engine from one ONNX graph."""

from __future__ import annotations

from pipeline.stages.base import StageConfig


class EngineConfig(StageConfig):
    """What to build.

    Attributes:
        compute_capability: `sm75`, `sm80`, `sm86`, `sm89`, `sm120` or `sm121`.
        profile: Axis name -> (min, opt, max).
    """

    compute_capability: str
    precision: str
    profile: dict[str, tuple[int, int, int]]
