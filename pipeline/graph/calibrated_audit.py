"""What is right of weights that make up for each other's errors, see `weight_methods.compensation`.

A weight may be steps away from its float weight, because it takes over what others lost. What was lost by
the ones before it is known from the result, so that three things can be asked of it exactly:

- each integer is the nearest one to its weight with what it takes over (half a step, where integers do
  not end); or else all of an output are the nearest to the float weights;
- outputs lose no more on the calibration samples than with the same scales and plain rounding;
- scales are of the size that `clip` may choose.

The second is computed from the moments themselves and not from their factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.graph.weight_methods.base import SHARES
from pipeline.graph.weight_methods.compensation import DAMPING

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.compensation import Factor

_NEGLIGIBLE: Final = 1e-3
"""Of a step: losses so small are rounding of the scale, and their ratio says nothing."""


class CompensatedRows:
    """Some outputs of a weight, what was stored for them, and the moments of what they read.

    Args:
        content: Float weight, (outputs, blocks, size), of its own type.
        values: Integers, likewise.
        scale: (outputs, blocks), as stored.
        factor: Of the moments.
        moments: float32 (inputs, inputs).
        whole: The scales that reach whole blocks, (outputs, blocks); 0 where there is nothing to reach.
        ends: The smallest and the largest integer there is.
    """

    def __init__(
        self,
        content: NDArray[Any],
        values: NDArray[Any],
        scale: NDArray[Any],
        factor: Factor,
        moments: NDArray[np.float32],
        whole: NDArray[Any],
        ends: tuple[int, int],
    ) -> None:
        outputs, _, size = content.shape
        self._content = content.astype(np.float64).reshape(outputs, -1)
        self._values = values.astype(np.float64).reshape(outputs, -1)
        self._scale = scale
        self._steps = np.repeat(scale.astype(np.float64), size, axis=1)
        self._size = size
        self._factor = factor
        self._moments = moments
        self._whole = whole.astype(np.float64)
        self._ends = ends

    def distance(self) -> tuple[float, tuple[int, int]]:
        """The largest distance of an integer from what it should be, in steps, and (output, input)."""
        order = self._factor.order
        lost = self._content - self._values * self._steps
        own = np.diagonal(self._factor.upper)
        with np.errstate(all="ignore"):
            taken = self._factor.spread(lost) / own / self._steps[:, order]
            plain = lost / self._steps
        taken = _unless_at_end(taken, self._values[:, order], self._ends)
        plain = _unless_at_end(plain, self._values, self._ends)
        worst, usual = _largest_of(taken), _largest_of(plain)
        rows = np.minimum(worst, usual)
        row = int(np.argmax(np.where(np.isnan(rows), np.inf, rows)))
        column = int(order[int(np.argmax(taken[row]))])
        return float(rows[row]), (row, column)

    def coarseness(self) -> tuple[float, int]:
        """By how much too coarse, as a factor, and in which output.

        The largest of the root of an output's loss over that of plain rounding; a scale over the one
        that reaches its whole block; and the least scale that may be chosen over a scale.
        """
        ratio = np.sqrt(self._losses())
        with np.errstate(all="ignore"):
            share = self._scale.astype(np.float64) / self._whole
            off = np.where(share < 0, np.inf, np.maximum(share, SHARES[-1] / share))
        off = np.where(self._whole != 0, off, 0.0).max(axis=1)
        rows = np.maximum(ratio, off)
        row = int(np.argmax(np.where(np.isnan(rows), np.inf, rows)))
        return float(rows[row]), row

    def _losses(self) -> NDArray[np.float64]:
        """Of each output, over those of plain rounding with the same scales."""
        nearest = np.clip(np.rint(self._content / self._steps), *self._ends)
        slack = self._loss(self._steps * _NEGLIGIBLE, is_apart=True)
        usual = self._loss(self._content - nearest * self._steps) + slack
        found: NDArray[np.float64] = (
            self._loss(self._content - self._values * self._steps) + slack
        ) / usual
        return found

    def _loss(self, lost: NDArray[np.float64], *, is_apart: bool = False) -> NDArray[np.float64]:
        """`d H d^T` of each output, with the damping; `is_apart`: as of inputs that are independent."""
        diagonal = np.diagonal(self._moments).astype(np.float64)
        damping = DAMPING * float(diagonal.mean()) or 1.0
        squares = np.square(lost)
        if is_apart:
            apart: NDArray[np.float64] = squares @ (diagonal + damping)
            return apart
        together: NDArray[np.float64] = ((lost @ self._moments) * lost).sum(axis=1)
        whole: NDArray[np.float64] = np.maximum(together, 0.0) + damping * squares.sum(axis=1)
        return whole


def _unless_at_end(
    steps: NDArray[np.float64], values: NDArray[np.float64], ends: tuple[int, int]
) -> NDArray[np.float64]:
    """Distances; none for what is cut off where integers end."""
    is_cut = ((values <= ends[0]) & (steps < 0)) | ((values >= ends[1]) & (steps > 0))
    found: NDArray[np.float64] = np.where(is_cut, 0.0, np.abs(steps))
    return found


def _largest_of(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.where(np.isnan(steps), np.inf, steps).max(axis=1, initial=0.0)
    return found
