"""Each range method on distributions whose best range is known, or against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration.methods import Method, Range, best_threshold, choose_range
from pipeline.calibration.statistics import TensorStatistics


def _statistics(values: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics(has_histogram=True)
    statistics.add(values.astype(np.float32))
    return statistics


def _range(values: np.ndarray, method: Method, percentile: float | None = None) -> Range:
    return choose_range(_statistics(values), method, percentile)


def _divergence(counts: np.ndarray, kept: int) -> float:
    """Of the quantised from the clipped histogram, written out bin by bin."""
    p = counts[:kept].astype(float)
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for group in range(128):
        first, last = kept * group // 128, kept * (group + 1) // 128
        filled = p[first:last] > 0
        if filled.any():
            q[first:last][filled] = counts[first:last].sum() / filled.sum()
    p, q = p / p.sum(), q / q.sum()
    if np.any((p > 0) & (q == 0)):
        return np.inf
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / q[used])))


def _brute_force(counts: np.ndarray) -> list[float]:
    last = int(np.flatnonzero(counts)[-1]) + 1
    return [_divergence(counts, kept) for kept in range(128, last + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_entropy_equals_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.abs(generator.standard_t(3, 4000))
    counts = np.histogram(values, bins=500, range=(0, values.max()))[0]
    if seed == 3:
        counts[200:220] = 0  # empty bins inside
    divergences = _brute_force(counts)
    chosen = divergences[best_threshold(counts) - 128]
    assert chosen <= min(divergences) + 1e-9


def test_entropy_drops_a_lone_outlier_of_a_bell() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    values[0] = 100.0
    found = _range(values, "entropy")
    assert found.magnitude < 10
    assert found.high == found.magnitude
    assert found.low >= -found.magnitude


def test_entropy_keeps_all_of_an_even_distribution() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 400_000)
    assert _range(values, "entropy").magnitude > 0.98


def test_minmax_is_all_that_was_seen_and_zero() -> None:
    assert _range(np.array([0.5, 3.0]), "minmax") == Range(low=0.0, high=3.0, magnitude=3.0)
    assert _range(np.array([-4.0, 1.0]), "minmax") == Range(low=-4.0, high=1.0, magnitude=4.0)


def test_percentile_of_an_even_distribution() -> None:
    values = np.linspace(-1, 1, 200_001)
    found = _range(values, "percentile", 95.0)
    assert found.high == pytest.approx(0.9, abs=1e-3)
    assert found.low == pytest.approx(-0.9, abs=1e-3)
    assert found.magnitude == pytest.approx(0.95, abs=1e-3)


def test_percentile_100_is_minmax() -> None:
    values = np.random.default_rng(1).standard_normal(1000)
    assert _range(values, "percentile", 100.0) == _range(values, "minmax")


def test_percentile_without_its_number_is_refused() -> None:
    with pytest.raises(ValueError, match="percentile"):
        _range(np.ones(3), "percentile")


def _symmetric_error(values: np.ndarray, magnitude: float) -> float:
    scale = magnitude / 127
    return float(np.mean((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2))


def _asymmetric_error(values: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return float(
        np.mean((values - (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale) ** 2)
    )


DISTRIBUTIONS = {
    "bell": np.random.default_rng(2).standard_normal(20_000),
    "tails": np.random.default_rng(3).standard_t(3, 20_000),
    "gelu": np.maximum(np.random.default_rng(4).standard_normal(20_000), -0.17) ** 3,
    "ramp": np.linspace(0, 5, 20_000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_near_the_best_of_a_fine_search_on_the_numbers_themselves(name: str) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32).astype(np.float64)
    found = _range(values, "mse")
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    fractions = np.linspace(0.05, 1, 96)
    best = min(_symmetric_error(values, f * max(-low, high)) for f in fractions)
    assert _symmetric_error(values, found.magnitude) <= 1.05 * best
    pairs = [(f * low, g * high) for f in fractions[::4] for g in fractions[::4]]
    best = min(_asymmetric_error(values, *pair) for pair in pairs)
    assert _asymmetric_error(values, found.low, found.high) <= 1.05 * best


def test_mse_is_never_worse_than_minmax() -> None:
    for values in DISTRIBUTIONS.values():
        found, whole = _range(values, "mse"), _range(values, "minmax")
        error = _asymmetric_error(values, found.low, found.high)
        assert error <= 1.001 * _asymmetric_error(values, whole.low, whole.high)


@pytest.mark.parametrize("method", ["minmax", "entropy", "mse", "percentile"])
def test_a_tensor_of_zeros_has_an_empty_range(method: Method) -> None:
    assert _range(np.zeros(10), method, 99.0) == Range(low=0.0, high=0.0, magnitude=0.0)


@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_ranges_hold_zero_and_nothing_beyond_what_was_seen(method: Method) -> None:
    for values in (np.linspace(2, 3, 5000), np.linspace(-3, -2, 5000)):
        found = _range(values, method, 99.0)
        assert min(values.min(), 0) <= found.low <= 0 <= found.high <= max(values.max(), 0)
        assert found.magnitude <= np.abs(values).max()


def test_a_method_without_a_histogram_is_refused() -> None:
    statistics = TensorStatistics(has_histogram=False)
    statistics.add(np.ones(3, dtype=np.float32))
    with pytest.raises(ValueError, match="needs a histogram"):
        choose_range(statistics, "mse", None)
