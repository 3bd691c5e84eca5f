"""The streaming histogram equals the one that is made from all numbers at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration.histogram import HALF, MIDDLE, Bins, Histogram

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _one_shot(values: np.ndarray) -> Bins:
    """By definition: the narrowest power of two that holds all, and a division."""
    peak = float(np.abs(values).max(initial=0.0))
    exponent = -126
    while peak >= HALF * 2.0**exponent:
        exponent += 1
    places = np.trunc(values.astype(np.float64) / 2.0**exponent).astype(int) + MIDDLE
    return Bins(np.bincount(places, minlength=2 * HALF - 1), 2.0**exponent)


def _streamed(parts: list[np.ndarray]) -> Bins:
    histogram = Histogram()
    for part in parts:
        histogram.add(part, float(np.abs(part).max(initial=0.0)))
    return histogram.finish()


def _require_equal(left: Bins, right: Bins) -> None:
    assert left.width == right.width
    np.testing.assert_array_equal(left.counts, right.counts)


@given(st.lists(st.lists(NUMBERS, max_size=5), min_size=1, max_size=6))
def test_streaming_in_any_parts_equals_one_shot(parts: list[list[float]]) -> None:
    arrays = [np.array(part, dtype=np.float32) for part in parts]
    _require_equal(_streamed(arrays), _one_shot(np.concatenate(arrays)))


@given(st.lists(NUMBERS, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_numbers_does_not_matter(numbers: list[float], random: object) -> None:
    shuffled = list(numbers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one_by_one = [np.array([number], dtype=np.float32) for number in shuffled]
    _require_equal(_streamed(one_by_one), _one_shot(np.array(numbers, dtype=np.float32)))


@given(st.lists(NUMBERS, max_size=8), st.lists(NUMBERS, max_size=8))
def test_two_histograms_merge_into_that_of_both(left: list[float], right: list[float]) -> None:
    first, second = Histogram(), Histogram()
    for histogram, numbers in ((first, left), (second, right)):
        array = np.array(numbers, dtype=np.float32)
        histogram.add(array, float(np.abs(array).max(initial=0.0)))
    first.merge(second)
    _require_equal(first.finish(), _one_shot(np.array(left + right, dtype=np.float32)))


def test_a_real_activation_is_counted_exactly() -> None:
    values = np.random.default_rng(0).standard_normal((30, 50)).astype(np.float32)
    values[3, 4] = 1000.0
    _require_equal(_streamed(list(values)), _one_shot(values.reshape(-1)))


def test_numbers_on_a_border_and_the_lowest_one_have_a_bin() -> None:
    values = np.array([-4096.0, -1.0, -0.0, 0.0, 1.0, 4095.0], dtype=np.float32)
    bins = _streamed([values])
    assert bins.width == 2.0  # 4096 lies outside a grid of width 1
    assert bins.counts[[MIDDLE - 2048, MIDDLE, MIDDLE + 2047]].tolist() == [1, 4, 1]


def test_at_least_half_of_a_side_is_in_use() -> None:
    for peak in (1e-30, 0.7, 1.0, 3e38):
        bins = _streamed([np.array([peak], dtype=np.float32)])
        assert np.flatnonzero(bins.counts)[0] - MIDDLE >= HALF // 2


def test_magnitudes_lay_both_sides_on_each_other() -> None:
    bins = _streamed([np.array([-0.3, 0.3, 0.9], dtype=np.float32)])
    assert bins.magnitudes.sum() == 3
    assert bins.magnitudes[math.floor(0.3 / bins.width)] == 2


@pytest.mark.parametrize(("magnitude", "share"), [(1.0, 0.0), (0.5, 0.25), (0.0, 1.0)])
def test_the_share_beyond_a_magnitude(magnitude: float, share: float) -> None:
    bins = _streamed([np.array([0.1, -0.1, 0.2, 0.9], dtype=np.float32)])
    assert bins.share_beyond(magnitude) == share
