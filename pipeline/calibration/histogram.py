"""A histogram of a stream of numbers whose range is not known beforehand.

The bins form a grid around zero whose width is a power of two. When a number falls outside, the
width doubles and bins merge in pairs: exactly, since every old bin lies inside one new bin. So the
final histogram depends on the numbers alone, not on their order or on how they were cut into
batches, and its memory does not grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF: Final = 4096
"""Bins on each side of zero, the one around it with both. At least half of one side is in use, so 255 levels have at least eight
bins each when nothing is clipped."""

MIDDLE: Final = HALF - 1
"""Place of the bin around zero."""

_PLACES: Final = np.arange(-MIDDLE, HALF)
"""Number of each bin; negative ones lie left of zero."""

_LOWEST_EXPONENT: Final = -126
"""Of the width: 2^126, by which numbers are multiplied, is the largest power float32 can turn round."""


@dataclass(frozen=True, slots=True)
class Bins:
    """A finished histogram.

    Attributes:
        counts: int64 (2 * HALF - 1,); bin `MIDDLE + k` counts the numbers whose quotient by the
            width, rounded towards zero, is `k`. So the middle bin is twice as wide.
        width: A power of two.
    """

    counts: NDArray[np.int64]
    width: float

    @property
    def upper_ends(self) -> NDArray[np.float64]:
        """Upper end of each bin, float64 (2 * HALF - 1,)."""
        return np.where(_PLACES >= 0, _PLACES + 1, _PLACES) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin, float64 (2 * HALF - 1,)."""
        return (_PLACES + 0.5 * np.sign(_PLACES)) * self.width

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts by absolute value, int64 (HALF,): bin `k` from `k * width` to the next."""
        both = self.counts[MIDDLE:].copy()
        both[1:] += self.counts[:MIDDLE][::-1]
        return both

    def share_beyond(self, magnitude: float) -> float:
        """Share of the numbers in bins that lie wholly outside `[-magnitude, magnitude]`."""
        first = min(math.ceil(magnitude / self.width), HALF)
        counts = self.magnitudes
        return int(counts[first:].sum()) / max(int(counts.sum()), 1)


class Histogram:
    """Counts numbers as they come; see the module."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * HALF - 1, dtype=np.int64)
        self._exponent = _LOWEST_EXPONENT

    def add(self, values: NDArray[np.float32], peak: float) -> None:
        """Count numbers.

        Args:
            values: Finite, float32, any shape; not changed.
            peak: The largest absolute value among them, or more.
        """
        self._widen(_exponent_for(peak))
        # A power of two, so the product is exact.
        scaled = values.reshape(-1) * np.float32(2.0**-self._exponent)
        places = scaled.astype(
            np.intp
        )  # towards zero, where what is too small for float32 goes too
        places += MIDDLE
        self._counts += np.bincount(places, minlength=2 * HALF - 1)

    def merge(self, other: Histogram) -> None:
        """Count what another histogram has counted."""
        self._widen(other._exponent)
        self._counts += _merged(other._counts, self._exponent - other._exponent)

    def finish(self) -> Bins:
        """The histogram so far; a copy."""
        return Bins(self._counts.copy(), math.ldexp(1.0, self._exponent))

    def _widen(self, exponent: int) -> None:
        if exponent > self._exponent:
            self._counts = _merged(self._counts, exponent - self._exponent)
            self._exponent = exponent


def _exponent_for(peak: float) -> int:
    """Of the narrowest width with which `peak` lies strictly inside the grid."""
    if peak == 0:
        return _LOWEST_EXPONENT
    # peak = mantissa * 2^power, mantissa below 1
    power = math.frexp(peak)[1]
    return max(_LOWEST_EXPONENT, power - HALF.bit_length() + 1)


def _merged(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """Counts on the grid that is `2 ** doublings` times as wide."""
    if doublings == 0:
        return counts
    places = np.sign(_PLACES) * (np.abs(_PLACES) >> min(doublings, 62)) + MIDDLE
    merged = np.zeros_like(counts)
    np.add.at(merged, places, counts)
    return merged
