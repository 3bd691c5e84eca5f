"""What a benchmark measured: plain frozen data, the JSON form of `benchmark.json`."""

from __future__ import annotations

from typing import Literal

from pipeline.records import Frozen


class Interval(Frozen):
    """A two-sided 95 % confidence interval over launches."""

    low: float
    high: float


class Timing(Frozen):
    """One model at one shape: medians over launches of each launch's own figure."""

    latency_p50_ms: float
    latency_p50_ms_interval: Interval
    throughput_samples_per_s: float


SpeedVerdict = Literal["faster", "slower", "same", "inconclusive"]


class ShapeResult(Frozen):
    """Reference and candidate at one (batch, sequence), measured in the same launches.

    Attributes:
        speedup: exp(mean over launches of ln(reference p50 / candidate p50)); above 1 is faster.
        speedup_interval: Its confidence interval over launches (Student's t on the log ratios).
        launch_speedups: The raw ratio of each launch.
        noise_floor: |speedup - 1| of the candidate against itself, the upper end of its interval.
        verdict: By margin; `inconclusive` when the interval crosses a margin.
        reason: One sentence: why this verdict.
    """

    batch: int
    sequence: int
    reference: Timing
    candidate: Timing
    speedup: float
    speedup_interval: Interval
    launch_speedups: tuple[float, ...]
    noise_floor: float
    verdict: SpeedVerdict
    reason: str = ""


class BenchmarkResult(Frozen):
    """A target against the checkpoint in torch, on this machine.

    Attributes:
        load_time_ms: From file to ready, median over launches.
        peak_rss_mib: The candidate's own process without the reference, peak resident set.
        size_bytes: Of all files that the runtime loads.
        notes: Sentences that a reader of the numbers should know, e.g. that launches were added.
    """

    reference: str
    candidate: str
    threads: int
    launches: int
    margin: float
    load_time_ms: float
    reference_load_time_ms: float
    peak_rss_mib: float
    reference_peak_rss_mib: float
    size_bytes: int
    reference_size_bytes: int
    shapes: tuple[ShapeResult, ...]
    notes: tuple[str, ...] = ()
