"""The parts of calls on a GPU: figures and warnings, as `trtexec` has them. Pure.

Source: NVIDIA/TensorRT samples/common/sampleReporting.cpp (11.1): percentiles 90, 95 and 99 as
`findPercentile` takes them, and the warnings behind its summary with the same limits.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final

from pipeline.bench.types import DevicePart, DeviceTimes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.bench.job import DeviceRecord

ENQUEUE_SHARE: Final = 0.8
"""Above this share of the compute time the GPU waits for the host."""
UNSTABLE: Final = 0.025
"""A coefficient of variation above which compute times are not to be relied on."""


def summarise_device(records: Sequence[DeviceRecord]) -> DeviceTimes | None:
    """Of all launches; None when none could tell.

    Args:
        records: One a launch.
    """
    if not records:
        return None
    times = DeviceTimes(
        h2d=_part([record.h2d_ms for record in records]),
        compute=_part([record.compute_ms for record in records]),
        d2h=_part([record.d2h_ms for record in records]),
        enqueue=_part([record.enqueue_ms for record in records]),
    )
    return times.model_copy(update={"warnings": tuple(_warnings(times))})


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def variation(values: Sequence[float]) -> float:
    """Standard deviation of all values over their mean; 0 when they are all 0."""
    mean = statistics.fmean(values)
    return statistics.pstdev(values) / mean if mean else 0.0


def describe_device(times: DeviceTimes) -> str:
    """The medians in one line."""
    return ", ".join(
        f"{name} {part.median_ms:.3f} ms"
        for name, part in (
            ("host to device", times.h2d),
            ("compute", times.compute),
            ("device to host", times.d2h),
            ("enqueue", times.enqueue),
        )
    )


def _part(launches: Sequence[Sequence[float]]) -> DevicePart:
    return DevicePart(
        median_ms=statistics.median(statistics.median(launch) for launch in launches),
        p90_ms=statistics.median(percentile(launch, 0.90) for launch in launches),
        p95_ms=statistics.median(percentile(launch, 0.95) for launch in launches),
        p99_ms=statistics.median(percentile(launch, 0.99) for launch in launches),
        coefficient_of_variation=statistics.median(variation(launch) for launch in launches),
    )


def _warnings(times: DeviceTimes) -> Iterator[str]:
    compute = times.compute.median_ms
    if times.enqueue.median_ms > ENQUEUE_SHARE * compute:
        yield (
            f"handing the work over takes {times.enqueue.median_ms:.3f} ms, the GPU's own work "
            f"{compute:.3f} ms: speed may be bound by the host, and a CUDA graph may help"
        )
    for part, words in ((times.h2d, "inputs to the GPU"), (times.d2h, "outputs from the GPU")):
        if part.median_ms >= compute:
            yield (
                f"copying the {words} takes {part.median_ms:.3f} ms, the GPU's own work "
                f"{compute:.3f} ms: speed may be bound by the copies"
            )
    if times.compute.coefficient_of_variation > UNSTABLE:
        share = times.compute.coefficient_of_variation
        yield (
            f"the GPU's compute times vary by {share:.1%} (coefficient of variation): lock its "
            "clocks, or leave nothing else on it"
        )
