"""Scales are judged by what their own method makes of the data."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration.fit import Levels, measure_fit
from pipeline.calibration.histogram import Bins
from pipeline.calibration.statistics import TensorStatistics


def _bins(values: np.ndarray) -> Bins:
    statistics = TensorStatistics(has_histogram=True)
    statistics.add(values.astype(np.float32))
    assert statistics.histogram is not None
    return statistics.histogram.finish()


def _levels(scale: float, zero_point: int = 0) -> Levels:
    return Levels(scale=scale, zero_point=zero_point, low=-128, high=127)


VALUES = np.random.default_rng(0).uniform(-1, 1, 100_000)
GOOD = 1 / 127


def test_uniform_numbers_have_the_ratio_that_theory_says() -> None:
    fit = measure_fit(_bins(VALUES), _levels(GOOD), [_levels(GOOD)])
    assert fit.sqnr_db == pytest.approx(10 * np.log10((1 / 3) / (GOOD**2 / 12)), abs=0.1)
    assert fit.loss_db == 0.0
    assert fit.clipped == 0.0


@pytest.mark.parametrize(
    ("levels", "least_loss_db"),
    [(_levels(2 * GOOD), 5.5), (_levels(GOOD / 2), 20.0), (_levels(GOOD, 20), 10.0)],
    ids=["scale x 2", "scale / 2", "zero point off"],
)
def test_scales_that_do_not_fit_lose(levels: Levels, least_loss_db: float) -> None:
    assert measure_fit(_bins(VALUES), levels, [_levels(GOOD)]).loss_db > least_loss_db


def test_what_is_beyond_the_levels_is_clipped() -> None:
    assert measure_fit(_bins(VALUES), _levels(GOOD / 2), [_levels(GOOD)]).clipped == pytest.approx(
        0.5, abs=0.01
    )


def test_the_worst_of_the_usual_ones_counts() -> None:
    usual = [_levels(GOOD), _levels(GOOD / 2)]
    fit = measure_fit(_bins(VALUES), _levels(2 * GOOD), usual)
    assert fit.loss_db < 0  # clipping half of the numbers is worse


def test_groups_are_not_asked_for_when_nothing_is_lost() -> None:
    def usual() -> object:
        yield _levels(GOOD)
        raise AssertionError

    assert measure_fit(_bins(VALUES), _levels(GOOD), usual()).loss_db == 0.0  # type: ignore[arg-type]


def test_zeros_fit_any_scale() -> None:
    fit = measure_fit(_bins(np.zeros(10)), _levels(GOOD), [_levels(1.0)])
    assert fit.loss_db == 0.0


FLOAT8_GOOD = 1 / 448


def _float8(scale: float) -> Levels:
    return Levels(scale=scale, zero_point=0, low=-448, high=448, is_float8=True)


def test_float8_has_the_ratio_that_three_bits_give() -> None:
    """Uniform in a binade, a rounding by half of an eighth: noise over signal is 1/12 * 2^-6 / (7/3)."""
    octave = np.random.default_rng(0).uniform(256, 512, 100_000) * (448 / 512) / 448
    signal = float(np.square(octave * 448).mean())
    fit = measure_fit(_bins(octave), _float8(FLOAT8_GOOD), [_float8(FLOAT8_GOOD)])
    low = (octave * 448 < 256).mean()  # of these the steps are half as large
    noise = (low * 16**2 + (1 - low) * 32**2) / 12
    assert fit.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.2)
    assert fit.clipped == 0.0


def test_float8_minds_a_scale_that_is_too_small_and_hardly_one_that_is_too_large() -> None:
    usual = [_float8(FLOAT8_GOOD)]
    large = measure_fit(_bins(VALUES), _float8(2 * FLOAT8_GOOD), usual)
    assert abs(large.loss_db) < 0.5
    small = measure_fit(_bins(VALUES), _float8(FLOAT8_GOOD / 2), usual)
    assert small.loss_db > 10
    assert small.clipped == pytest.approx(0.5, abs=0.03)
    tiny = measure_fit(_bins(VALUES), _float8(FLOAT8_GOOD * 2**17), usual)
    assert tiny.loss_db > 4  # most numbers are below the smallest ones
