"""Scales with the least sum of squared errors: the largest weights may be cut off for finer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.graph.weight_methods.base import WeightMethod, search_scales, squares

if TYPE_CHECKING:
    import numpy as np

    from pipeline.graph.weight_methods.base import Bits, Blocks, Scales


def least_squares(blocks: Blocks, bits: Bits, dtype: np.dtype[Any]) -> Scales:
    """The scale of `SHARES` with the least sum of squares in each block."""
    return search_scales(blocks, bits, dtype, squares)


CLIP: Final = WeightMethod(name="clip", find_scales=least_squares, loss=squares)
