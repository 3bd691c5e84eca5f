"""Launches -> result: the one place where raw durations become figures. Pure."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from pipeline.bench.device import summarise_device
from pipeline.bench.statistics import (
    judge,
    log_mean_interval,
    median_with_interval,
    noise_floor,
)
from pipeline.bench.types import ShapeResult, Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.bench.job import Launch, Role, ShapeRecord
    from pipeline.bench.types import Shape


def summarise_shape(launches: Sequence[Launch], shape: Shape, *, margin: float) -> ShapeResult:
    """What all launches together say about one shape.

    Args:
        launches: Of both kinds; those that left the shape out are passed over.
        shape: The size of each axis of the launches.
        margin: Share within which two speeds count as the same.

    Raises:
        ValueError: for fewer than two launches of either kind.
    """
    versus = records_of(launches, "ab", shape)
    itself = records_of(launches, "aa", shape)
    speedups = tuple(speedup_of(record) for record in versus)
    speedup, interval = log_mean_interval(speedups)
    floor = noise_floor([speedup_of(record) for record in itself])
    verdict, reason = judge(interval, margin=margin, floor=floor)
    return ShapeResult(
        axes=versus[0].axes,
        shape=shape,
        reference=_timing(versus, "reference"),
        candidate=_timing(versus, "candidate"),
        speedup=speedup,
        speedup_interval=interval,
        launch_speedups=speedups,
        noise_floor=floor,
        verdict=verdict,
        reason=reason,
        device=summarise_device([record.device for record in versus if record.device is not None]),
    )


def records_of(launches: Iterable[Launch], kind: str, shape: Shape) -> tuple[ShapeRecord, ...]:
    """The records of one shape in all launches of one kind."""
    return tuple(
        record
        for launch in launches
        if launch.kind == kind
        for record in launch.record.shapes
        if record.shape == shape
    )


def speedup_of(record: ShapeRecord) -> float:
    """One launch's speedup: exp(median over pairs of ln(reference p50 / candidate p50)).

    The two blocks of a pair were measured one right after the other, so what slows the machine for
    seconds cancels out.
    """
    return math.exp(
        statistics.median(
            math.log(statistics.median(pair.reference_ns) / statistics.median(pair.candidate_ns))
            for pair in record.pairs
        )
    )


def median_load_time_ms(launches: Iterable[Launch], role: Role) -> float:
    """Median over A/B launches of the time from file to ready, ms."""
    times = [
        launch.record.load_of(role).load_time_ns for launch in launches if launch.kind == "ab"
    ]
    return statistics.median(times) / 1e6


def median_peak_rss_mib(
    launches: Iterable[Launch],
    kind: str,
    role: Role | None,
    shapes: tuple[Shape, ...],
) -> float:
    """Median peak memory of a process that held one model alone and ran all the shapes, MiB.

    Launches that were added later for some of the shapes are passed over.

    Args:
        launches: Of both kinds.
        kind: Of which to take; in `aa` launches either role is the candidate.
        role: Whose memory, or None for either.
        shapes: All shapes of the benchmark.
    """
    peaks = [
        record.peak_rss_bytes
        for launch in launches
        if launch.kind == kind and launch.job.shapes == shapes
        for name, record in (
            ("reference", launch.record.reference),
            ("candidate", launch.record.candidate),
        )
        if role in {None, name} and record.peak_rss_bytes is not None
    ]
    return statistics.median(peaks) / (1 << 20)


def _timing(records: Sequence[ShapeRecord], role: Role) -> Timing:
    calls = [
        [ns for pair in record.pairs for ns in getattr(pair, f"{role}_ns")] for record in records
    ]
    p50, interval = median_with_interval([statistics.median(launch) / 1e6 for launch in calls])
    # Samples over the whole time, not over the median: rare slow calls cost throughput as well.
    throughputs = [
        record.batch * len(launch) / (sum(launch) / 1e9)
        for record, launch in zip(records, calls, strict=True)
    ]
    return Timing(
        latency_p50_ms=p50,
        latency_p50_ms_interval=interval,
        throughput_samples_per_s=statistics.median(throughputs),
    )
