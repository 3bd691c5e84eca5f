"""What sorting texts by their length brings: the same texts in batches as they come and in order.

A batch is as long as its longest text, so texts of like length together leave less padding to compute.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Final

from pipeline.bench.statistics import log_mean_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.hashing import JSON

BATCHING_FORMULAS: Final[Mapping[str, str]] = {
    "tokens_per_s": "(tokens of all prompts or sources without padding + new tokens of all texts) / time "
    "for all batches; the median of rounds",
    "sorted_over_unsorted": "time as they come / time in order of length, in the same round of one "
    "process; the geometric mean of rounds, with the 97 % interval of their logarithms (Student)",
    "padding": "padded tokens of prompts or sources / all tokens of them, padding included",
}


def compare_orders(
    write: Callable[[Sequence[int]], None],
    lengths: Sequence[int],
    *,
    batch: int,
    tokens: int,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, JSON]:
    """Write all texts in both orders, in turn.

    Args:
        write: Writes the texts of these places as one batch, the same number of new tokens for each.
        lengths: Tokens of each prompt or source.
        batch: Texts at a time; the last batch may be smaller.
        tokens: New tokens of each.
        rounds: How often both are timed, two or more, after a round that is not.
        now: A clock, seconds.
        on_round: Called after every round.
    """
    came = list(range(len(lengths)))
    orders = {
        "unsorted": _batches(came, batch),
        "sorted": _batches(sorted(came, key=lambda at: lengths[at]), batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    for number in range(1 + rounds):
        # Whoever comes second finds a warmer machine: each is second as often as the other.
        names = list(orders) if number % 2 else list(reversed(orders))
        for name in names:
            started = now()
            for places in orders[name]:
                write(places)
            if number:
                seconds[name].append(now() - started)
        on_round()
    ratios = [a / b for a, b in zip(seconds["unsorted"], seconds["sorted"], strict=True)]
    ratio, interval = log_mean_interval(ratios)
    whole = sum(lengths) + tokens * len(lengths)
    return {
        "texts": len(lengths),
        "batch": batch,
        "tokens": tokens,
        "rounds": rounds,
        "lengths": [min(lengths), max(lengths)],
        **{f"{name}_tokens_per_s": whole / median(found) for name, found in seconds.items()},
        **{f"{name}_padding": _padding(lengths, batches) for name, batches in orders.items()},
        "sorted_over_unsorted": ratio,
        "interval": [interval.low, interval.high],
    }


def _batches(places: Sequence[int], batch: int) -> list[list[int]]:
    return [list(places[start : start + batch]) for start in range(0, len(places), batch)]


def _padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    padded = sum(len(places) * max(lengths[at] for at in places) for places in batches)
    return 1.0 - sum(lengths) / padded
