"""How a range is chosen from the statistics of a tensor.

A range is chosen twice: `low` and `high` for 256 levels with a zero point (uint8), and `magnitude`
for 255 levels around zero (int8). Both always hold zero.

    minmax      all that was seen
    percentile  what lies between two percentiles; for the magnitude, one of absolute values
    entropy     the clipping of absolute values whose quantised distribution loses the least
                information (Kullback-Leibler divergence)
    mse         the clipping with the least mean squared error of the rounded and clipped numbers

Source of entropy: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, and `EntropyCalibrater` of
ONNX Runtime 1.31.1, with which the rule for empty bins is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.calibration.histogram import Bins
    from pipeline.calibration.statistics import TensorStatistics

Method: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]

_GROUPS: Final = 128
"""Levels that int8 has for absolute values; entropy compares with as many groups of bins."""

_FRACTIONS: Final = np.linspace(0.02, 1.0, 99)
"""Shares of the full range that mse tries first."""

_ROUNDS: Final = 3
"""Times that mse moves one end after the other, each with a finer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What a tensor is quantised for.

    Attributes:
        low: At most 0; where the levels of uint8 begin.
        high: At least 0; where they end.
        magnitude: At least 0; largest absolute value that int8 levels reach.
    """

    low: float
    high: float
    magnitude: float


def choose_range(statistics: TensorStatistics, method: Method, percentile: float | None) -> Range:
    """The range of one tensor.

    Args:
        statistics: Of at least one number; with a histogram unless the method is `minmax`.
        method: See the module.
        percentile: For method `percentile`: percent of the numbers that are kept, above 50.

    Raises:
        ValueError: when statistics lack what the method needs.
    """
    if not statistics.count:
        raise ValueError("nothing was counted")
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    whole = Range(low=low, high=high, magnitude=max(-low, high))
    if method == "minmax" or not whole.magnitude:
        return whole
    if statistics.histogram is None:
        raise ValueError(f"method {method} needs a histogram")
    bins = statistics.histogram.finish()
    if method == "percentile":
        if percentile is None:
            raise ValueError("method percentile needs a percentile")
        return _percentile(bins, whole, percentile / 100)
    return _entropy(bins, whole) if method == "entropy" else _mse(bins, whole)


def _percentile(bins: Bins, whole: Range, share: float) -> Range:
    """Upper ends of the bins in which the share is reached; never more than was seen."""
    upwards, downwards = bins.counts.cumsum(), bins.counts[::-1].cumsum()
    wanted = np.ceil(share * int(bins.counts.sum()))
    ends = bins.upper_ends
    high = float(ends[int(np.searchsorted(upwards, wanted))])
    low = -float(ends[int(np.searchsorted(downwards, wanted))])
    magnitude = (int(np.searchsorted(bins.magnitudes.cumsum(), wanted)) + 1) * bins.width
    return Range(
        low=min(max(low, whole.low), 0.0),
        high=max(min(high, whole.high), 0.0),
        magnitude=min(magnitude, whole.magnitude),
    )


def _entropy(bins: Bins, whole: Range) -> Range:
    magnitude = min(best_threshold(bins.magnitudes) * bins.width, whole.magnitude)
    return Range(
        low=max(-magnitude, whole.low), high=min(magnitude, whole.high), magnitude=magnitude
    )


def best_threshold(counts: NDArray[np.int64]) -> int:
    """How many of the first bins to keep so that 128 groups of them tell the most of the whole.

    For each number of bins kept, P is the histogram with all that lies behind it counted in the
    last kept bin, and Q spreads the sum of each group (without that surplus) evenly over the bins
    of the group in which P is not empty. The result has the least divergence of Q from P:

        sum_j P_j log(P_j / Q_j) = sum_j P_j log P_j - sum_g P_g log(Q_g / n_g)

    so running sums give each candidate in 128 steps instead of thousands.

    Args:
        counts: int64 (bins,) of absolute values, more than 128 bins.
    """
    last = int(np.flatnonzero(counts)[-1]) + 1
    if last <= _GROUPS:
        return last
    kept = np.arange(_GROUPS, last + 1)
    borders = kept[:, None] * np.arange(_GROUPS + 1) // _GROUPS  # (candidates, groups + 1)
    total = float(counts.sum())
    information = _running_sum(_times_log(counts.astype(np.float64)))
    mass, filled = _running_sum(counts), _running_sum(counts > 0)
    surplus = total - mass[kept]
    tail = counts[kept - 1].astype(np.float64)
    sums = np.diff(mass[borders], axis=1)
    sizes = np.diff(filled[borders], axis=1)
    with_surplus = sums.copy()
    with_surplus[:, -1] += surplus
    sizes[:, -1] += (tail == 0) & (surplus > 0)  # the last bin is not empty in P
    own = information[kept] - _times_log(tail) + _times_log(tail + surplus)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(with_surplus > 0, with_surplus * np.log(sums / sizes), 0.0)
        # P is divided by the total, Q by what was kept: both only shift the logarithms.
        divergence = (own - spread.sum(axis=1)) / total + np.log(mass[kept] / total)
    # Where Q is empty and P is not, the divergence is infinite.
    divergence[~np.isfinite(divergence)] = np.inf
    # Summation order makes equal divergences differ in the last bits; the wider range wins then.
    best = float(divergence.min())
    return int(kept[np.flatnonzero(divergence <= best + 1e-12)[-1]])


def _running_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... values; counts are exact below 2^53."""
    return np.concatenate([[0.0], values.astype(np.float64)]).cumsum()


def _times_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """X log x, and 0 at 0."""
    return values * np.log(np.where(values > 0, values, 1.0))


def _mse(bins: Bins, whole: Range) -> Range:
    filled = np.flatnonzero(bins.counts)
    centers, weights = bins.centers[filled], bins.counts[filled].astype(np.float64)
    fractions = [float(fraction) for fraction in _FRACTIONS]

    def symmetric(fraction: float) -> float:
        scale = fraction * whole.magnitude / 127
        rounded = np.clip(np.rint(centers / scale), -127, 127) * scale
        return float((centers - rounded) ** 2 @ weights)

    def asymmetric(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        rounded = (np.clip(np.rint(centers / scale) + zero, 0, 255) - zero) * scale
        return float((centers - rounded) ** 2 @ weights)

    share = min(fractions, key=symmetric)
    both = min(fractions, key=lambda f: asymmetric(f * whole.low, f * whole.high))
    low, high = both, both
    for step in [0.1 / 4**number for number in range(_ROUNDS)]:
        high = min(_around(high, step), key=lambda f: asymmetric(low * whole.low, f * whole.high))
        low = min(_around(low, step), key=lambda f: asymmetric(f * whole.low, high * whole.high))
    return Range(low=low * whole.low, high=high * whole.high, magnitude=share * whole.magnitude)


def _around(fraction: float, step: float) -> list[float]:
    """The fraction itself first, so that it stays unless another is better."""
    moved = [fraction + number * step / 4 for number in range(-6, 7) if number]
    return [fraction, *(f for f in moved if 0.0 < f <= 1.0)]
