from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration.statistics import TensorStatistics, mask_of, real_values
from pipeline.errors import QuantizationError

MASK = np.array([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_counted(bad: float) -> None:
    statistics = TensorStatistics(has_histogram=True)
    with pytest.raises(QuantizationError, match="2 of its 5 elements are NaN or infinite"):
        statistics.add(np.array([1.0, bad, 2.0, bad, 0.0], dtype=np.float32))
    assert statistics.count == 0


def test_lowest_and_highest_are_exact() -> None:
    statistics = TensorStatistics(has_histogram=False)
    for part in ([0.1, -0.3], [], [0.2]):
        statistics.add(np.array(part, dtype=np.float32))
    assert (statistics.low, statistics.high) == (np.float32(-0.3), np.float32(0.2))
    assert statistics.count == 3


def test_a_mask_without_padding_is_no_mask() -> None:
    assert mask_of({"input_ids": MASK}) is None
    assert mask_of({"attention_mask": np.ones((2, 3), dtype=np.int64)}) is None


@pytest.mark.parametrize("shape", [(2, 3, 5), (6, 5), (2, 3, 1)])
def test_padded_positions_do_not_count_in_any_layout(shape: tuple[int, ...]) -> None:
    mask = mask_of({"attention_mask": MASK})
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    by_position = array.reshape(6, -1)
    expected = by_position[[0, 1, 3]]
    np.testing.assert_array_equal(real_values(array, mask).reshape(3, -1), expected)


def test_choices_that_the_graph_lays_into_the_batch_are_masked_too() -> None:
    mask = mask_of({"attention_mask": MASK[None]})  # (batch 1, choices 2, sequence 3)
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(real_values(array, mask), array[MASK.astype(bool)])


def test_what_has_no_positions_is_taken_whole() -> None:
    mask = mask_of({"attention_mask": MASK})
    for features in (7, 3):  # also when there are as many as positions
        pooled = np.ones((2, features), dtype=np.float32)
        assert real_values(pooled, mask) is pooled
