"""What is said of calls on a GPU: their parts, and the checkpoint in torch there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.bench.types import DevicePart, DeviceTimes
    from pipeline.report.schema import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One part of a target's calls at one shape."""

    target: str
    shape: str
    part: str
    times: DevicePart


def device_rows(report: Report) -> Iterator[DeviceRow]:
    """The parts of all calls on a GPU that were measured, in the order in which they happen."""
    for target in report.targets:
        for shape in target.benchmark.shapes if target.benchmark else ():
            for part, times in _parts(shape.device) if shape.device else ():
                yield DeviceRow(target=target.name, shape=shape.label, part=part, times=times)


def _parts(times: DeviceTimes) -> tuple[tuple[str, DevicePart], ...]:
    return (
        ("copies to the GPU", times.h2d),
        ("compute", times.compute),
        ("copies back", times.d2h),
        ("enqueue", times.enqueue),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchRow:
    """One line of the table: an output beside a shape, which have nothing to do with each other.

    Attributes:
        name: The variant, with its component where there are several.
        shape: What was timed; empty when there are more outputs than shapes.
        output: What was compared; empty when there are more shapes than outputs.
        cosine, relative_l2: Distance to the reference; None without a comparison.
        reference_ms, ms: Median latencies of float32 in eager mode, and of this.
        speedup: Over float32.
    """

    name: str
    shape: str = ""
    output: str = ""
    cosine: float | None = None
    relative_l2: float | None = None
    reference_ms: float | None = None
    ms: float | None = None
    speedup: float | None = None


def torch_rows(report: Report) -> Iterator[TorchRow]:
    """Of every way in which torch was compared on this machine's GPU."""
    several = len({run.component for run in report.torch_runs}) > 1
    for run in report.torch_runs:
        name = f"{run.component} {run.variant}" if several else run.variant
        outputs = run.parity.outputs if run.parity else ()
        shapes = run.benchmark.shapes if run.benchmark else ()
        if not outputs and not shapes:
            yield TorchRow(name=name, output="no result")
        for output, shape in zip_longest(outputs, shapes):
            yield TorchRow(
                name=name,
                shape=shape.label if shape else "",
                output=output.name if output else "",
                cosine=output.metrics.cosine_similarity if output else None,
                relative_l2=output.metrics.relative_l2 if output else None,
                reference_ms=shape.reference.latency_p50_ms if shape else None,
                ms=shape.candidate.latency_p50_ms if shape else None,
                speedup=shape.speedup if shape else None,
            )
