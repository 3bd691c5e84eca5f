"""Scales as `clip` finds them, and integers that make up for each other's errors (GPTQ)."""

from __future__ import annotations

from typing import Final

from pipeline.graph.weight_methods.base import WeightMethod, squares
from pipeline.graph.weight_methods.clip import least_squares

GPTQ: Final = WeightMethod(
    name="gptq", find_scales=least_squares, loss=squares, is_calibrated=True
)
