"""A server that is asked at random times: how long people wait, and how many are served in time.

Requests come as in MLPerf's server scenario, at times with exponential gaps (a Poisson process), whether
or not the earlier ones are answered. Whoever waits is served together with the others who wait, as many
as fit, and a batch is written to its end before the next one begins (static batching).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.bench.generation_metrics import Work, time_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.bench.generation_metrics import GenerationTimes
    from pipeline.hashing import JSON
    from pipeline.runtimes.decoder import Decoder

SERVER_FORMULAS: Final[Mapping[str, str]] = {
    "ttft of a request": "time from its arrival to its first new token, waiting included",
    "good": "requests with ttft and tpot both within their objective / all requests",
    "goodput_per_s": "requests with ttft and tpot both within their objective / time from the first "
    "arrival to the last token",
    "served_per_s": "all requests / the same time",
    "loadgen": "what MLPerf's LoadGen says itself when it asks: times from when it meant to ask, and "
    "VALID when both objectives hold at the 99th percentile with enough requests",
}
"""Name -> formula. Goodput is that of Zhong et al., DistServe, 2024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request.

    Attributes:
        arrival_s: When it came, since the start.
        ttft_ms: From then to its first token.
        tpot_ms: Time per token behind the first.
        end_s: When its last token was there, since the start.
    """

    arrival_s: float
    ttft_ms: float
    tpot_ms: float
    end_s: float


def poisson_arrivals(requests: int, rate_per_s: float, seed: int) -> tuple[float, ...]:
    """When requests come, seconds; the first one at 0, later ones `1 / rate_per_s` apart on average."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_per_s, requests - 1)
    return (0.0, *np.cumsum(gaps).tolist())


def serve(
    decoder: Decoder,
    arrivals: Sequence[float],
    work: Work,
    *,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Served, ...]:
    """Serve requests as they come, in the order in which they come.

    Args:
        decoder: A loaded graph that ran once before.
        arrivals: When each comes, seconds since the start; ascending.
        work: Prompt and new tokens of each; `batch` is how many are served together at most.
        now: The clock, seconds.
        sleep: Waits for so many seconds of it.

    Raises:
        StageError: when the decoder cannot be run.
    """
    started = now()
    done: list[Served] = []
    while len(done) < len(arrivals):
        waited = arrivals[len(done)] - (now() - started)
        if waited > 0:
            sleep(waited)
        begun = now() - started
        # At least one, even where the clock has not quite reached it.
        waiting = [arrivals[len(done)]]
        waiting += [each for each in arrivals[len(done) + 1 :] if each <= begun]
        batch = waiting[: work.batch]
        size = Work(batch=len(batch), prompt=work.prompt, tokens=work.tokens)
        times = time_generation(decoder, size, now=now)
        done += [_served(arrival, begun, times) for arrival in batch]
    return tuple(done)


def summarize_server(
    served: Sequence[Served], *, ttft_ms: float, tpot_ms: float
) -> dict[str, JSON]:
    """What people saw, and goodput.

    Args:
        served: All requests.
        ttft_ms: Objective for the first token, inclusive.
        tpot_ms: Objective for each token behind it, inclusive.
    """
    good = sum(each.ttft_ms <= ttft_ms and each.tpot_ms <= tpot_ms for each in served)
    duration_s = max(each.end_s for each in served) - min(each.arrival_s for each in served)
    waits = np.array([each.ttft_ms for each in served])
    return {
        "requests": len(served),
        "ttft_p50_ms": float(np.quantile(waits, 0.5)),
        "ttft_p99_ms": float(np.quantile(waits, 0.99)),
        "tpot_mean_ms": fmean(each.tpot_ms for each in served),
        "good": good / len(served),
        "goodput_per_s": good / duration_s,
        "served_per_s": len(served) / duration_s,
    }


def _served(arrival_s: float, begun_s: float, times: GenerationTimes) -> Served:
    return Served(
        arrival_s=arrival_s,
        ttft_ms=(begun_s - arrival_s) * 1e3 + times.ttft_ms,
        tpot_ms=times.tpot_ms,
        end_s=begun_s + times.stamps[-1],
    )
