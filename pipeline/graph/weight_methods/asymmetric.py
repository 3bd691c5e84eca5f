"""Rounding with a zero point for each block: `value = scale * (integer - zero_point)`, both 0 to 15.

Zero keeps an integer of its own, as a kernel with integers for zero points needs it, so that the range of a
block is widened to hold zero. `rtn` takes that range, `clip` the share of it with the least sum of squared
errors; `hqq` makes the loss of its authors least (Badri and
Shaji, see `hqq`): the lp norm of the errors with p = 0.7. They keep the scale and move a zero point that is
no whole number, `mean(q - (w - e) / s)`, `e` the shrunk errors. A zero point that is one only moves by
whole steps, which changes nothing but where integers end, so that here the scale moves too, to the best
one for what is left, `sum((q - z) (w - e)) / sum((q - z)^2)`. Of all pairs the one with the least loss as
it is stored is kept, `rtn`'s where none is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.graph.weight_methods.base import SHARES, squares, stored_scale
from pipeline.graph.weight_methods.hqq import BETA, GROWTH, STEPS, robust, shrunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Blocks, Scales

    Loss = Callable[[Blocks, Blocks], NDArray[np.float32]]

LARGEST_CODE: Final = 15


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points of blocks, both (outputs, blocks); zero points are whole, as floats."""

    scale: Scales
    zero: NDArray[np.float32]

    def integers(self, blocks: Blocks) -> NDArray[np.float32]:
        """The nearest integers, as floats."""
        # In place: most of the time would go into new memory otherwise.
        result: NDArray[np.float32] = blocks / self.scale.astype(np.float32)[..., None]
        result += self.zero[..., None]
        np.rint(result, out=result)
        return np.clip(result, 0, LARGEST_CODE, out=result)

    def floats(self, integers: NDArray[np.float32]) -> NDArray[np.float32]:
        """What integers stand for."""
        result: NDArray[np.float32] = (integers - self.zero[..., None]) * self.scale.astype(
            np.float32
        )[..., None]
        return result

    def loss(self, blocks: Blocks, loss: Loss) -> NDArray[np.float32]:
        """What it costs each block, (outputs, blocks)."""
        errors = self.integers(blocks)
        errors -= self.zero[..., None]
        errors *= self.scale.astype(np.float32)[..., None]
        np.subtract(blocks, errors, out=errors)
        return loss(errors, blocks)


def whole_range(blocks: Blocks, dtype: np.dtype[Any], share: float = 1.0) -> Grid:
    """From the least to the largest weight of each block, and zero."""
    low = np.minimum(blocks.min(axis=2), 0) * np.float32(share)
    high = np.maximum(blocks.max(axis=2), 0) * np.float32(share)
    return _grid((high - low) / np.float32(LARGEST_CODE), low, dtype)


def _grid(step: NDArray[np.float32], low: NDArray[np.float32], dtype: np.dtype[Any]) -> Grid:
    scale = stored_scale(step.astype(np.float32), dtype)
    zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, LARGEST_CODE)
    return Grid(scale, zero.astype(np.float32))


def least_squares(blocks: Blocks, dtype: np.dtype[Any]) -> Grid:
    """The share of the range with the least sum of squares in each block."""
    best = whole_range(blocks, dtype, SHARES[0])
    least = best.loss(blocks, squares)
    for share in SHARES[1:]:
        best, least = _better(best, least, whole_range(blocks, dtype, share), blocks, squares)
    return best


def _better(
    best: Grid, least: NDArray[np.float32], tried: Grid, blocks: Blocks, loss: Loss
) -> tuple[Grid, NDArray[np.float32]]:
    """Of two grids the one that costs less, block by block, and what it costs."""
    errors = tried.loss(blocks, loss)
    is_better = errors < least
    scale = np.where(is_better, tried.scale, best.scale)
    return Grid(scale, np.where(is_better, tried.zero, best.zero)), np.minimum(errors, least)


def half_quadratic(blocks: Blocks, dtype: np.dtype[Any]) -> Grid:
    """See the module."""
    best = whole_range(blocks, dtype)
    least = best.loss(blocks, robust)
    # In units of the step the same threshold serves weights of every size.
    unit = best.scale.astype(np.float32)
    numbers = (blocks / unit[..., None]).astype(np.float32)
    grid, beta = whole_range(numbers, np.dtype(np.float32)), BETA
    for _ in range(STEPS):
        integers = grid.integers(numbers)
        left = numbers - shrunk(numbers - grid.floats(integers), beta)
        zero = (integers - left / grid.scale[..., None]).mean(axis=2)
        zero = np.clip(np.rint(zero), 0, LARGEST_CODE).astype(np.float32)
        places = integers - zero[..., None]
        below = np.square(places).sum(axis=2)
        above = (places * left).sum(axis=2)
        usable = (below > 0) & (above > 0)
        scale = np.where(usable, above / np.where(usable, below, 1), grid.scale)
        grid = Grid(scale.astype(np.float32), zero)
        tried = Grid(stored_scale(grid.scale * unit, dtype), zero)
        best, least = _better(best, least, tried, blocks, robust)
        beta *= GROWTH
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPointMethod:
    """How weights are rounded with zero points.

    Attributes:
        find: (blocks, type of the scales) -> grid.
        loss: (errors, blocks) -> (outputs, blocks): what is made least, in the unit of a square;
            None when the grid follows from the range alone.
    """

    find: Callable[[Blocks, np.dtype[Any]], Grid]
    loss: Loss | None = None


ZERO_POINT_METHODS: Final = {
    "rtn": ZeroPointMethod(find=whole_range),
    "clip": ZeroPointMethod(find=least_squares, loss=squares),
    "hqq": ZeroPointMethod(find=half_quadratic, loss=robust),
}
"""Name, as a recipe says it -> method."""
