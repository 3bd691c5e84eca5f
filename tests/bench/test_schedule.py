"""Orders are random, and yet fair; blocks fit the time."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.schedule import (
    FEWEST_PAIRS,
    MOST_PAIRS,
    WARM_UP_S,
    mirrored_orders,
    plan_blocks,
    shuffled_orders,
)


@given(st.integers(1, 40), st.integers())
def test_each_model_goes_first_equally_often(count: int, seed: int) -> None:
    for orders in (mirrored_orders(count, Random(seed)), shuffled_orders(count, Random(seed))):
        assert len(orders) == count
        assert abs(orders.count("reference") - orders.count("candidate")) <= count % 2


def test_each_two_pairs_mirror_each_other() -> None:
    orders = mirrored_orders(40, Random(1))
    assert all(first != second for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert {"reference", "candidate"} == set(orders[::2])


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    assert mirrored_orders(30, Random(1)) == mirrored_orders(30, Random(1))
    assert mirrored_orders(30, Random(1)) != mirrored_orders(30, Random(2))


@given(st.floats(1e-6, 10), st.floats(0.01, 5))
def test_blocks_fit_the_time_unless_the_smallest_plan_does_not(
    cycle_s: float, seconds: float
) -> None:
    plan = plan_blocks(cycle_s, seconds)
    assert FEWEST_PAIRS <= plan.pairs <= MOST_PAIRS
    assert plan.calls >= 1
    warm_up_s = max(cycle_s, 2 * WARM_UP_S)
    smallest = FEWEST_PAIRS * (warm_up_s + cycle_s)
    used = plan.pairs * (warm_up_s + plan.calls * cycle_s)
    assert used <= max(seconds, smallest) * (1 + 1e-9)
