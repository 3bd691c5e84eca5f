from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.parity.metrics import DistanceSums, cosine_similarities, measure, sum_distances

FLOATS = st.floats(-1e6, 1e6, width=32)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=6)
PAIRS = SHAPES.flatmap(
    lambda shape: st.tuples(*(hnp.arrays(np.float32, shape, elements=FLOATS) for _ in range(2)))
)


@given(PAIRS)
def test_metrics_are_those_of_the_plain_formulas(pair: tuple[np.ndarray, np.ndarray]) -> None:
    candidate, reference = (array.astype(np.float64) for array in pair)
    measured = measure(*pair)
    difference = np.abs(candidate - reference)
    assert measured.max_abs_diff == pytest.approx(difference.max())
    assert measured.mean_abs_diff == pytest.approx(difference.mean())
    norm = np.linalg.norm(reference)
    if norm:
        assert measured.relative_l2 == pytest.approx(np.linalg.norm(difference) / norm)
    cosines = []
    for left, right in zip(
        candidate.reshape(-1, candidate.shape[-1]),
        reference.reshape(-1, candidate.shape[-1]),
        strict=True,
    ):
        product = np.linalg.norm(left) * np.linalg.norm(right)
        cosines.append(left @ right / product if product else float(left.any() == right.any()))
    assert measured.cosine_similarity == pytest.approx(min(cosines), abs=1e-12)
    assert measured.cosine_similarity_mean == pytest.approx(np.mean(cosines), abs=1e-12)
    assert measured.elements == reference.size


@given(PAIRS, st.integers(0, 6))
def test_adding_pieces_gives_the_metrics_of_the_whole(
    pair: tuple[np.ndarray, np.ndarray], cut: int
) -> None:
    candidate, reference = (array.reshape(-1, array.shape[-1]) for array in pair)
    whole = measure(candidate, reference).model_dump()
    pieces = sum_distances(candidate[:cut], reference[:cut]) + sum_distances(
        candidate[cut:], reference[cut:]
    )
    for name, value in pieces.metrics().model_dump().items():
        assert value == (None if whole[name] is None else pytest.approx(whole[name])), name


@given(hnp.arrays(np.float32, SHAPES, elements=FLOATS))
def test_a_tensor_is_exactly_like_itself(array: np.ndarray) -> None:
    measured = measure(array, array)
    assert measured.cosine_similarity == 1.0
    assert measured.max_abs_diff == measured.relative_l2 == 0.0
    assert measured.sqnr_db is None


@given(PAIRS, st.integers(-3, 3))
def test_scale_does_not_change_the_cosine_but_the_difference(
    pair: tuple[np.ndarray, np.ndarray], power: int
) -> None:
    _, reference = pair
    # In float64: half of the smallest float32 would be zero.
    scaled = measure(reference.astype(np.float64) * 2.0**power, reference)
    assert scaled.cosine_similarity == pytest.approx(1.0)
    if reference.any():
        assert scaled.relative_l2 == pytest.approx(abs(2.0**power - 1.0))


def test_zero_vectors_are_alike_and_unlike_everything_else() -> None:
    left = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    right = np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    assert cosine_similarities(left, right).tolist() == [1.0, 0.0, 0.0]


def test_the_tiniest_float32_is_no_zero() -> None:
    tiny = np.full((1, 4), 1e-45, np.float32)
    assert measure(tiny, tiny).cosine_similarity == 1.0
    assert measure(-tiny, tiny).cosine_similarity == -1.0


def test_the_largest_float32_does_not_overflow() -> None:
    huge = np.full((1, 4), np.finfo(np.float32).max)
    measured = measure(-huge, huge)
    assert measured.cosine_similarity == -1.0
    assert measured.relative_l2 == 2.0


def test_sqnr_is_in_decibels() -> None:
    reference = np.ones((1, 100), np.float32)
    measured = measure(reference + np.float32(2.0**-10), reference)
    assert measured.sqnr_db == pytest.approx(20 * math.log10(2.0**10))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_leaves_no_number(bad: float) -> None:
    reference = np.ones((3, 4), np.float32)
    candidate = reference.copy()
    candidate[1, 2] = candidate[2, 0] = bad
    measured = measure(candidate, reference)
    assert measured.non_finite == 2
    assert measured.elements == 12
    assert measured.cosine_similarity is measured.max_abs_diff is measured.relative_l2 is None


def test_a_piece_that_is_not_finite_spoils_the_sum() -> None:
    good = np.ones((1, 4), np.float32)
    total = sum_distances(good, good) + sum_distances(good * np.nan, good)
    assert total.metrics().max_abs_diff is None
    assert total.metrics().non_finite == 4


def test_a_zero_reference_has_no_relative_error_unless_there_is_no_error() -> None:
    zero = np.zeros((1, 4), np.float32)
    assert measure(zero + 1, zero).relative_l2 is None
    assert measure(zero, zero).relative_l2 == 0.0


def test_nothing_compared_leaves_no_number() -> None:
    assert DistanceSums().metrics().cosine_similarity is None
    assert DistanceSums().metrics().elements == 0


def test_vectors_of_one_number_have_no_angle_and_no_rank() -> None:
    reference = np.array([[0.5], [2.0]], np.float32)
    measured = sum_distances(3 * reference, reference, is_ranked=True).metrics()
    assert measured.cosine_similarity is measured.cosine_similarity_mean is None
    assert measured.top1_agreement is None
    assert measured.relative_l2 == 2.0


def test_half_precision_is_compared_in_float64() -> None:
    reference = np.full((1, 4096), 60000.0, np.float32)
    assert measure(reference.astype(np.float16), reference).relative_l2 == 0.0


def test_shapes_are_never_broadcast() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measure(np.ones((1, 4)), np.ones((3, 4)))


def test_a_reference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        measure(np.ones(2), np.array([1.0, np.nan]))
