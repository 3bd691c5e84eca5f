"""Intervals that cover the truth, and verdicts that a simulation cannot fool."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.statistics import (
    CONFIDENCE,
    judge,
    log_mean_interval,
    median_with_interval,
    noise_floor,
)
from pipeline.bench.types import Interval

LAUNCHES = 5
BIAS = 0.03
"""Standard deviation of ln ratio from process to process, as measured on a shared machine."""


def simulate(true_ratio: float, experiments: int, launches: int = LAUNCHES) -> np.ndarray:
    """Ratios (experiments, launches) of processes that each have a bias of their own."""
    bias = np.random.default_rng(7).normal(0, BIAS, (experiments, launches))
    return true_ratio * np.exp(bias)


def test_one_look_covers_the_truth_in_97_percent_of_experiments() -> None:
    hits = 0
    for ratios in simulate(1.3, 2000):
        _, interval = log_mean_interval(ratios.tolist())
        hits += interval.low <= 1.3 <= interval.high
    assert 0.955 <= hits / 2000 <= 0.985


def test_an_interval_from_inside_one_process_would_not() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for (biased,) in simulate(1.3, 500, launches=1):
        calls = biased * np.exp(random.normal(0, 0.02, 50))
        _, interval = log_mean_interval(calls.tolist())
        hits += interval.low <= 1.3 <= interval.high
    assert hits / 500 < 0.4


def test_looking_twice_covers_the_truth_in_95_percent_and_misjudges_in_at_most_5() -> None:
    margin = 0.05
    wrong = covered = 0
    for ratios in simulate(1 + margin, 2000, launches=2 * LAUNCHES):
        _, interval = log_mean_interval(ratios[:LAUNCHES].tolist())
        verdict, _ = judge(interval, margin=margin, floor=0.0)
        if verdict == "inconclusive":
            _, interval = log_mean_interval(ratios.tolist())
            verdict, _ = judge(interval, margin=margin, floor=0.0)
        # Exactly on the margin neither `faster than by the margin` nor `same` is true.
        wrong += verdict in {"faster", "slower"}
        covered += interval.low <= 1 + margin <= interval.high
    assert wrong / 2000 <= 0.05
    assert 0.935 <= covered / 2000 <= 0.97


def test_equal_models_are_the_same() -> None:
    ratios = [1.004, 0.997, 1.001, 0.995, 1.003]
    _, interval = log_mean_interval(ratios)
    assert judge(interval, margin=0.05, floor=noise_floor(ratios))[0] == "same"


def test_a_clear_difference_is_faster_or_slower() -> None:
    floor = noise_floor([1.004, 0.997, 1.001, 0.995, 1.003])
    _, fast = log_mean_interval([1.31, 1.29, 1.33, 1.30, 1.28])
    _, slow = log_mean_interval([0.71, 0.69, 0.73, 0.70, 0.68])
    assert judge(fast, margin=0.05, floor=floor)[0] == "faster"
    assert judge(slow, margin=0.05, floor=floor)[0] == "slower"


def test_a_difference_smaller_than_the_margin_is_neither() -> None:
    assert judge(Interval(low=1.01, high=1.03), margin=0.05, floor=0.0)[0] == "same"
    assert judge(Interval(low=1.02, high=1.08), margin=0.05, floor=0.0)[0] == "inconclusive"


def test_a_margin_below_the_noise_floor_is_not_honoured() -> None:
    verdict, reason = judge(Interval(low=0.99, high=1.01), margin=0.02, floor=0.06)
    assert verdict == "inconclusive"
    assert "6.0%" in reason
    assert "2.0%" in reason
    # Faster than by the margin, but the model would be as fast against itself.
    assert judge(Interval(low=1.03, high=1.05), margin=0.02, floor=0.06)[0] == "inconclusive"
    # A difference that clears the floor does not need the margin.
    verdict, reason = judge(Interval(low=1.4, high=1.6), margin=0.02, floor=0.06)
    assert verdict == "faster"
    assert "noise floor of 6.0%" in reason


def test_the_noise_floor_is_the_far_end_of_the_interval() -> None:
    ratios = [1.02, 1.03, 1.01, 1.02, 1.02]
    _, interval = log_mean_interval(ratios)
    assert noise_floor(ratios) == pytest.approx(interval.high - 1)
    assert noise_floor([1 / ratio for ratio in ratios]) == pytest.approx(interval.high - 1)


def test_the_quantile_is_students_for_so_few_launches() -> None:
    # The density of t with 4 degrees of freedom, integrated by the closed form of its distribution:
    # F(t) = 1/2 + 3/8 · t / √(1 + t²/4) · (1 - t² / (12 (1 + t²/4))).
    values = [math.exp(x) for x in (-2, -1, 0, 1, 2)]
    mean, interval = log_mean_interval(values)
    assert mean == pytest.approx(1.0)
    t = math.log(interval.high) / math.sqrt(2.5 / 5)
    a = 1 + t * t / 4
    distribution = 0.5 + 0.375 * t / math.sqrt(a) * (1 - t * t / (12 * a))
    assert distribution == pytest.approx((1 + CONFIDENCE) / 2)


def test_one_launch_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two launches"):
        log_mean_interval([1.0])


def test_the_interval_of_a_median_holds_the_median() -> None:
    median, interval = median_with_interval([1.0] * 6 + [1000.0] * 4)
    assert median == 1.0
    assert interval.low <= median <= interval.high


ratios_of_launches = st.lists(st.floats(0.1, 10), min_size=2, max_size=10)


@given(ratios_of_launches, st.floats(0.01, 0.3), st.floats(0, 0.3))
def test_swapping_the_models_mirrors_the_verdict(
    ratios: list[float], margin: float, floor: float
) -> None:
    _, interval = log_mean_interval(ratios)
    _, mirrored = log_mean_interval([1 / ratio for ratio in ratios])
    assert mirrored.low == pytest.approx(1 / interval.high)
    swap = {"faster": "slower", "slower": "faster"}
    exact = Interval(low=1 / interval.high, high=1 / interval.low)
    verdict, _ = judge(interval, margin=margin, floor=floor)
    other, _ = judge(exact, margin=margin, floor=floor)
    edges = [1 + margin, 1 / (1 + margin), 1 + max(margin, floor), 1 / (1 + max(margin, floor))]
    if all(abs(end / edge - 1) > 1e-9 for end in (interval.low, interval.high) for edge in edges):
        assert other == swap.get(verdict, verdict)


def test_launches_that_disagree_wildly_are_inconclusive_on_either_side() -> None:
    for low, high in ((1.3, 30_000.0), (0.001, 0.5)):
        verdict, reason = judge(Interval(low=low, high=high), margin=0.05, floor=0.01)
        assert verdict == "inconclusive"
        assert "too busy" in reason
