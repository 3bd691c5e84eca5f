from __future__ import annotations

import numpy as np
import pytest

from pipeline.parity.layer_noise import MOST_ROWS, LayerRow, NoiseSums, layer_facts

GENERATOR = np.random.default_rng(0)
LOWEST = float(np.finfo(np.float32).min)


def sums(*pairs: tuple[object, object], dtype: type = np.float32) -> NoiseSums:
    found = NoiseSums()
    for right, candidate in pairs:
        found.add(np.asarray(right, dtype=dtype), np.asarray(candidate, dtype=dtype))
    return found


def test_noise_is_the_error_over_the_size_of_all_samples_together() -> None:
    right = [GENERATOR.normal(size=(3, size)).astype(np.float32) for size in (5, 1500)]
    found = [array + np.float32(0.25) for array in right]
    result = sums(*zip(right, found, strict=True))
    every = np.concatenate([array.reshape(-1) for array in right]).astype(np.float64)
    assert result.noise == pytest.approx(0.25 / np.sqrt(np.square(every).mean()), rel=1e-5)
    shifted = every + 0.25
    cosine = every @ shifted / np.linalg.norm(every) / np.linalg.norm(shifted)
    assert result.cosine == pytest.approx(cosine, rel=1e-6)


def test_equal_arrays_have_no_noise_even_when_they_are_zero() -> None:
    assert sums(([0, 0], [0, 0])).noise == 0.0
    assert sums(([0, 0], [0, 0])).cosine is None
    assert sums(([1, 2], [1, 2])).noise == 0.0


def test_something_where_nothing_should_be_is_no_number() -> None:
    assert sums(([0, 0], [0, 1])).noise is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_alone_is_a_fault(wrong: float) -> None:
    assert sums(([1, 2], [1, wrong])).noise is None
    assert sums(([1, wrong], [1, 2])).noise is None
    assert sums(([1, 2], [1, wrong]), ([1, 2], [1, 2])).noise is None


def test_masks_are_alike_whatever_infinity_is_called() -> None:
    right = [1.0, LOWEST, -np.inf, LOWEST]
    found = [1.5, -32752.0, -65504.0, -np.inf]
    assert sums((right, found)).noise == pytest.approx(0.5)
    assert sums(([1.0, np.nan], [1.5, np.nan])).noise == pytest.approx(0.5)
    # Not when the other lets through what should be masked, or has another sign.
    assert sums(([1.0, LOWEST], [1.0, 0.0])).noise == pytest.approx(1.0)
    assert sums(([1.0, LOWEST], [1.0, -LOWEST])).noise == pytest.approx(2.0)


def test_another_shape_is_a_fault() -> None:
    assert sums(([1, 2], [[1, 2]])).noise is None


def test_half_precision_is_compared_in_single() -> None:
    right = np.full(4096, 100.0, dtype=np.float16)  # squares of which float16 cannot add up
    assert sums((right, right * np.float16(1.5)), dtype=np.float16).noise == pytest.approx(0.5)


def rows(*added: float | None) -> list[LayerRow]:
    found = []
    for number, each in enumerate(added):
        row = LayerRow(value=f"v{number}", operator="MatMul", node=f"n{number}", layer="")
        wrong = np.nan if each is None else 1.0 + each
        row.own.add(np.ones(4, dtype=np.float32), np.full(4, wrong, dtype=np.float32))
        row.total.add(np.ones(4, dtype=np.float32), np.ones(4, dtype=np.float32))
        found.append(row)
    return found


def test_the_first_is_by_place_and_the_worst_by_size() -> None:
    facts = layer_facts(rows(0.0, 0.25, None, 0.5, 0.125), limit=0.2)
    assert facts["first"] == "v1"
    assert facts["worst"] == ["v2", "v3", "v1", "v4"]
    assert layer_facts(rows(0.0, 0.125), limit=0.2)["first"] is None
    assert layer_facts(rows(0.125, None), limit=0.2)["first"] == "v1"


def test_long_tables_keep_the_worst_and_some_of_all_in_order() -> None:
    added = [0.0] * 1000
    added[777] = 0.5
    facts = layer_facts(rows(*added), limit=0.2)
    layers = facts["layers"]
    assert isinstance(layers, list)
    names = [row["name"] for row in layers]
    assert len(names) <= MOST_ROWS
    assert "v777" in names
    assert names == sorted(names, key=lambda name: int(name[1:]))
    assert any(int(name[1:]) > 950 for name in names)
    assert facts["first"] == "v777"
