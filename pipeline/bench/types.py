"""What a benchmark measured: plain frozen data, the JSON form of `benchmark.json`."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from pipeline.records import Frozen

Shape: TypeAlias = tuple[int, ...]
"""The size of each free axis of a model, in the order of its task, the batch first."""


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


class Shaped(Frozen):
    """What was measured at one shape.

    Attributes:
        axes: Names of the model's free axes, the batch first.
        shape: Their sizes.
    """

    axes: tuple[str, ...]
    shape: Shape

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if not self.axes or len(self.axes) != len(self.shape):
            msg = f"shape {list(self.shape)} does not have one size for each of {list(self.axes)}"
            raise ValueError(msg)
        return self

    @property
    def batch(self) -> int:
        """How many samples a call has."""
        return self.shape[0]

    @property
    def label(self) -> str:
        """The sizes alone: `8 x 64`, or `8` when there is one axis."""
        return " x ".join(map(str, self.shape))

    @property
    def description(self) -> str:
        """The sizes with their names: `batch 8, sequence 64`."""
        pairs = zip(self.axes, self.shape, strict=True)
        return ", ".join(f"{axis} {size}" for axis, size in pairs)


class DevicePart(Frozen):
    """One part of a call: medians over launches of each launch's own figure, ms.

    Attributes:
        coefficient_of_variation: Standard deviation over mean; a share such as 0.02.
    """

    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    coefficient_of_variation: float


class DeviceTimes(Frozen):
    """What a call on a GPU consists of, as `trtexec` reports it.

    Attributes:
        h2d: Copies of the inputs to the GPU, by CUDA events.
        compute: The engine's own work on the GPU, by CUDA events.
        d2h: Copies of the outputs back, by CUDA events.
        enqueue: What the host needs to hand the work over, by its own clock.
        warnings: Why the latency is not that of the GPU's work, or not to be relied on.
    """

    h2d: DevicePart
    compute: DevicePart
    d2h: DevicePart
    enqueue: DevicePart
    warnings: tuple[str, ...] = ()


class ShapeResult(Shaped):
    """Reference and candidate at one shape, measured in the same launches.

    Attributes:
        speedup: exp(mean over launches of ln(reference p50 / candidate p50)); above 1 is faster.
        speedup_interval: Its confidence interval over launches (Student's t on the log ratios).
        launch_speedups: The raw ratio of each launch.
        noise_floor: |speedup - 1| of the candidate against itself, the upper end of its interval.
        verdict: By margin; `inconclusive` when the interval crosses a margin.
        reason: One sentence: why this verdict.
        device: Of a candidate that ran on a GPU: the parts of its calls.
    """

    reference: Timing
    candidate: Timing
    speedup: float
    speedup_interval: Interval
    launch_speedups: tuple[float, ...]
    noise_floor: float
    verdict: SpeedVerdict
    reason: str = ""
    device: DeviceTimes | None = Field(default=None, exclude_if=lambda times: times is None)


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
