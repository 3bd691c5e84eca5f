"""Quantise weights to INT8 with activation scales taken at run time."""

from __future__ import annotations

from pipeline.stages.base import StageConfig


class QuantizeDynamicConfig(StageConfig):
    """How to quantise."""

    per_channel: bool = True
