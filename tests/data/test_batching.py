from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batching import mix_lengths, pad_batch
from pipeline.data.sample_set import InputSpec

lengths = st.lists(st.integers(1, 40), max_size=40)


@given(lengths, st.integers(1, 9))
def test_every_sample_is_in_exactly_one_batch(sizes: list[int], batch_size: int) -> None:
    batches = mix_lengths(sizes, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_samples_of_one_length_fill_their_batches() -> None:
    assert [len(batch) for batch in mix_lengths([5] * 11, 4)] == [4, 4, 3]


@given(st.lists(st.integers(1, 1000), min_size=8, max_size=40, unique=True))
def test_the_first_batch_and_each_third_have_the_shortest_row_left(sizes: list[int]) -> None:
    batches = mix_lengths(sizes, 4)
    short = sorted(sizes)[: len(batches[::3])]
    for batch, least in zip(batches[::3], short, strict=True):
        assert min(sizes[index] for index in batch) == least
    for batch in batches:
        if len(batch) > 1:  # texts of one length have no padding, but these are all different
            assert len({sizes[index] for index in batch}) > 1


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_all_rows_but_one_are_of_like_length(sizes: list[int], batch_size: int) -> None:
    for batch in mix_lengths(sizes, batch_size):
        ordered = sorted((sizes[index] for index in batch), reverse=True)
        assert all(size >= 0.75 * ordered[0] for size in ordered[:-1])


def test_the_longest_samples_share_a_batch() -> None:
    sizes = [5, 500, 6, 510, 7, 505, 8, 9]
    first, *_ = mix_lengths(sizes, 4)
    assert {1, 3, 5} < set(first)
    assert 0 in first


def test_rows_are_filled_on_the_right_with_each_inputs_own_value() -> None:
    samples = [
        {"input_ids": np.array([1, 2, 3]), "attention_mask": np.ones(3, np.int64)},
        {"input_ids": np.array([4]), "attention_mask": np.ones(1, np.int64)},
    ]
    inputs = {
        "input_ids": InputSpec(dtype="int64", axes=("sequence",), fill=7),
        "attention_mask": InputSpec(dtype="int64", axes=("sequence",)),
    }
    feeds = pad_batch(samples, inputs)
    assert feeds["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        mix_lengths([1], 0)
