"""The server scenario on a clock that is set by hand: who waits, who is served together, what is good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.bench.generation_metrics import Work
from pipeline.bench.server import poisson_arrivals, serve, summarize_server
from pipeline.runtimes.decoder import Cache

if TYPE_CHECKING:
    from pipeline.runtimes.decoder import Feed, Floats


class Clock:
    """Time goes on when somebody sleeps or a step is made."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class SlowDecoder:
    """A second for every step, whatever the batch; remembers the batches."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batches: list[int] = []

    def empty(self, rows: int) -> Cache:
        self.batches.append(rows)
        return Cache(rows=rows, length=0, values={})

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        del last
        self.clock.time += 1.0
        after = Cache(rows=cache.rows, length=feed.mask.shape[1], values={})
        return np.zeros((cache.rows, 1, 5), np.float32), after

    def reorder(self, cache: Cache, rows: object) -> Cache:
        del cache, rows
        raise AssertionError

    def read(self, cache: Cache) -> dict[str, Floats]:
        del cache
        raise AssertionError


def test_who_waits_is_served_together_and_waiting_counts() -> None:
    clock = Clock()
    decoder = SlowDecoder(clock)
    arrivals = (0.0, 0.5, 1.0, 2.5, 10.0)
    work = Work(batch=2, prompt=4, tokens=3)  # three seconds a batch
    served = serve(decoder, arrivals, work, now=clock.now, sleep=clock.sleep)
    assert decoder.batches == [1, 2, 1, 1]
    assert [each.ttft_ms for each in served] == pytest.approx([1000, 3500, 3000, 4500, 1000])
    assert [each.end_s for each in served] == pytest.approx([3, 6, 6, 9, 13])
    found = summarize_server(served, ttft_ms=3000.0, tpot_ms=1000.0)
    assert found["good"] == pytest.approx(3 / 5)
    assert found["goodput_per_s"] == pytest.approx(3 / 13)
    assert found["served_per_s"] == pytest.approx(5 / 13)
    assert found["tpot_mean_ms"] == pytest.approx(1000.0)
    assert summarize_server(served, ttft_ms=1e9, tpot_ms=999.0)["good"] == 0.0


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = np.array(poisson_arrivals(20_001, 4.0, seed=3))
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0.0
    # Of an exponential distribution mean and deviation are equal; five standard errors.
    assert gaps.mean() == pytest.approx(0.25, abs=5 * 0.25 / 20_000**0.5)
    assert gaps.std() == pytest.approx(0.25, rel=0.06)
    assert poisson_arrivals(5, 4.0, seed=3) == poisson_arrivals(5, 4.0, seed=3)
