"""Who goes first, and how many calls a block has. Pure; all chance comes from the given generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.bench.job import ROLES, Role

if TYPE_CHECKING:
    from random import Random

FEWEST_PAIRS: Final = 4
MOST_PAIRS: Final = 12
MOST_CALLS: Final = 100

WARM_UP_S: Final = 0.02
"""Each block begins with uncounted calls for at least this long.

Torch's idle OpenMP threads spin for 7 to 11 ms after a call (torch 2.13, two cores, measured in
docs/decisions/0004-benchmark-design.md), on the cores that the next block wants.
"""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """How one shape is measured.

    Attributes:
        pairs: Pairs of blocks, one block of each model.
        calls: Timed calls of each block, after its warm-up.
    """

    pairs: int
    calls: int


def plan_blocks(cycle_s: float, seconds: float) -> BlockPlan:
    """Fit pairs of blocks into a time.

    Args:
        cycle_s: One call of each model together, seconds.
        seconds: How long the shape may take, warm-ups included, seconds. Exceeded when even the
            smallest plan, four pairs of blocks with one timed call, takes longer.
    """
    warm_up_s = max(cycle_s, 2 * WARM_UP_S)
    pairs = min(max(int(seconds / (warm_up_s + cycle_s)), FEWEST_PAIRS), MOST_PAIRS)
    calls = min(max(int((seconds / pairs - warm_up_s) / cycle_s), 1), MOST_CALLS)
    return BlockPlan(pairs=pairs, calls=calls)


def mirrored_orders(count: int, random: Random) -> tuple[Role, ...]:
    """Which role goes first, `count` times: a coin is tossed for each two, the second mirrors it.

    AB BA or BA AB: chance decides, and yet both go first equally often, so a machine that gets
    slower all the time does no harm to either. An odd last one is a toss of its own.
    """
    orders: list[Role] = []
    for _ in range((count + 1) // 2):
        first, second = random.sample(ROLES, 2)
        orders += [first, second]
    return tuple(orders[:count])


def shuffled_orders(count: int, random: Random) -> tuple[Role, ...]:
    """Which role goes first, `count` times, each role equally often (give or take one), shuffled."""
    orders = list(mirrored_orders(count, random))
    random.shuffle(orders)
    return tuple(orders)
