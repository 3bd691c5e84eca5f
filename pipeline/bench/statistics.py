"""The statistics of a benchmark: intervals over launches, and a verdict by margin. Pure.

A launch is one sample: what differs from process to process (memory layout, which cores, what else
the machine does) is the larger part of the error, and calls inside one process do not show it.
All ratios are taken in logarithms, so that swapping the two models mirrors every result.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final

# Not scipy.stats: it takes 1.6 s to import, and all that is wanted is one quantile.
from scipy.special import stdtrit

from pipeline.bench.types import Interval, SpeedVerdict
from pipeline.parity.gates import WIDEST_SPREAD

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE: Final = 1 - 0.0294
"""Two-sided confidence of one look, so that two looks have 95 %.

Launches are added when the first ones leave the verdict open. Looking twice at plain 95 % intervals
would leave the truth out in up to 8.6 % of benchmarks (simulated). Source of the level: S. J.
Pocock (1977), Group sequential methods in the design and analysis of clinical trials, Biometrika
64, 191-199, table 1, two looks.
"""


def log_mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Geometric mean of positive numbers, and its confidence interval.

    Student's t on the logarithms: mean ± t(n - 1, (1 + CONFIDENCE) / 2) · s / √n, brought back by
    exp. It covers the truth with 95 %, looked at twice (see `CONFIDENCE`).

    Args:
        values: One positive number a launch, at least two.

    Returns:
        The geometric mean, and the interval; both in the unit of `values`.

    Raises:
        ValueError: for fewer than two values, or one that is not positive.

    Source: Student (1908), The probable error of a mean; the quantile is `scipy.special.stdtrit`,
    the inverse of the distribution function of t (scipy 1.17).
    """
    if len(values) < 2:
        msg = f"an interval needs at least two launches, not {len(values)}"
        raise ValueError(msg)
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    quantile = float(stdtrit(len(logs) - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), Interval(low=math.exp(mean - half), high=math.exp(mean + half))


def median_with_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Median over launches, with the interval of `log_mean_interval`.

    With very skewed launches the geometric mean's interval could leave the median out. It is then
    widened to the median, which only makes it safer.
    """
    median = statistics.median(values)
    _, interval = log_mean_interval(values)
    return median, Interval(low=min(interval.low, median), high=max(interval.high, median))


def noise_floor(ratios: Sequence[float]) -> float:
    """How far from equal a model may look when it is measured against itself.

    Args:
        ratios: First p50 / second p50 of each A/A launch.

    Returns:
        exp(the larger end of the interval of |ln ratio|) - 1, a share such as 0.02.
    """
    _, interval = log_mean_interval(ratios)
    return max(interval.high, 1 / interval.low) - 1


def judge(interval: Interval, *, margin: float, floor: float) -> tuple[SpeedVerdict, str]:
    """The verdict on a speedup, and one sentence that says why.

    `faster` and `slower` must clear the margin and the noise floor, whichever is larger. `same` is
    a claim about the margin alone, so a margin below the floor can never give it: there the
    machine is too noisy to say so.

    Args:
        interval: Of the speedup; above 1 the candidate is faster.
        margin: Share within which two speeds count as the same, such as 0.05.
        floor: From `noise_floor`.
    """
    spread = interval.high / interval.low
    bar = 1 + max(margin, floor)
    far = bar * WIDEST_SPREAD  # beyond this, on either side, even such launches leave no doubt
    if spread > WIDEST_SPREAD and interval.low < far and interval.high > 1 / far:
        return "inconclusive", f"the launches disagree {spread:.0f}-fold: the machine is too busy"
    wide = f"{margin:.1%}" if floor <= margin else f"the noise floor of {floor:.1%}"
    if interval.low > bar:
        return "faster", f"the whole interval is above 1 by more than {wide}"
    if interval.high < 1 / bar:
        return "slower", f"the whole interval is below 1 by more than {wide}"
    is_within = interval.low >= 1 / (1 + margin) and interval.high <= 1 + margin
    if floor > margin:
        reason = (
            f"the candidate against itself differs by up to {floor:.1%} here, "
            f"so a margin of {margin:.1%} cannot be judged"
        )
        return "inconclusive", reason
    if is_within:
        return "same", f"the whole interval is within {wide} of 1"
    return "inconclusive", f"the interval crosses the margin of {margin:.1%}"
