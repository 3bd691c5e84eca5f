"""How well a scale that was found on some samples fits others.

The yardstick is what the same method makes of the other samples themselves: of all of them, and of each
of a few groups, the worst of which counts. So a method that clips on purpose is not blamed for it, nor
is a calibration for what changes with any choice of samples anyway. Measured with four methods on 32 to
128 samples, five choices each, on five models, against 64 evaluation samples in four groups of 16
(largest loss of any tensor, dB):

| calibrated with                       | largest of good ones | faults                           |
|---------------------------------------|----------------------|----------------------------------|
| 32 or more samples                    | 2.0                  |                                  |
| 16 samples                            | 3.5                  |                                  |
| 8 samples                             | 8.9 (some are bad)   |                                  |
| one sample                            |                      | 0.8 to 50, most above 5          |
| ranges of another tensor              |                      | 3.0 to 37, method mse from 9.6   |
| mask for token ids                    |                      | 4.7 to 19                        |
| negative images                       |                      | 0.1 (int8: no fault) to 8.9      |
| random tokens or pixels               |                      | method mse: 5.0 to 26            |
| columns of images shuffled            |                      | 5.0 to 10                        |
| order of tokens shuffled              |                      | 0.1 to 9.6: of classifiers of    |
|                                       |                      | texts the ranges stay right      |

Against the best range of the evaluation samples alone, good calibrations lose up to 8.8 dB: more than a
scale that is twice too large (5 to 6 dB).

float8 has steps that are a share of the number, so a scale that is too large costs next to nothing until
many numbers come below 2^-6 of it; one that is too small cuts, as it does with integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.calibration.histogram import Bins

Numbers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

HALF_STEP: Final = 16.0
"""Of float8_e4m3fn around 448, its largest number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What a tensor is rounded to: `scale * (integer - zero_point)`, or `scale * float8`.

    Attributes:
        scale: Positive.
        zero_point: An integer from `low` to `high`; 0 for float8.
        low, high: Of the integers, or of float8.
        is_float8: The levels are the numbers of float8_e4m3fn.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    is_float8: bool = False

    def rounded(self, numbers: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
        """Every number as it is rounded, and whether it lies more than half a step beyond."""
        if self.is_float8:
            ratios = numbers / self.scale
            kept = np.clip(ratios, self.low, self.high).astype(ml_dtypes.float8_e4m3fn)
            return kept.astype(np.float64) * self.scale, np.abs(ratios) > self.high + HALF_STEP
        integers = np.rint(numbers / self.scale) + self.zero_point
        inside = np.clip(integers, self.low, self.high)
        return (inside - self.zero_point) * self.scale, integers != inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well a tensor is served.

    Attributes:
        sqnr_db: Signal to rounding and clipping noise, decibels.
        usual_db: The least that the same method gives on the samples themselves.
        clipped: Share of the numbers that lie more than half a step beyond the levels.
    """

    sqnr_db: float
    usual_db: float
    clipped: float

    @property
    def loss_db(self) -> float:
        """By how much it does worse than usual; negative when it does better."""
        return self.usual_db - self.sqnr_db


SMALLEST_NOISE = 1e-12
"""Of the signal: what is rounded exactly has 120 dB, not infinity."""


CLEAR_DB = 1.0
"""With a loss up to this, groups of the samples are not asked for, which takes time."""


def measure_fit(bins: Bins, levels: Levels, usual: Iterable[Levels]) -> Fit:
    """Compare levels with those that the same method chooses.

    Args:
        bins: Of the samples' numbers.
        levels: What is looked at.
        usual: Chosen on all these samples, then on groups of them; at least the first. Those that
            are not needed are not asked for.
    """
    filled = np.flatnonzero(bins.counts)
    centers, weights = bins.centers[filled], bins.counts[filled].astype(np.float64)
    own, clipped = _sqnr(centers, weights, levels)
    least = np.inf
    for each in usual:
        least = min(least, _sqnr(centers, weights, each)[0])
        if least - own <= CLEAR_DB:
            break
    return Fit(sqnr_db=own, usual_db=least, clipped=clipped)


def _sqnr(
    centers: Numbers,
    weights: Numbers,
    levels: Levels,
) -> tuple[float, float]:
    """(decibels, share clipped) of numbers, each counted by its weight."""
    kept, is_cut = levels.rounded(centers)
    errors = centers - kept
    signal, noise = float(centers**2 @ weights), float(errors**2 @ weights)
    clipped = float(weights[is_cut].sum() / weights.sum())
    if signal == 0.0:
        return 0.0, clipped
    return -10 * float(np.log10(max(noise / signal, SMALLEST_NOISE))), clipped
