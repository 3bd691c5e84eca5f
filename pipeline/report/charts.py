"""Geometry of the charts in `report.html`: plain numbers, which the templates turn into SVG.

Nothing here makes markup, so that escaping stays with the template engine. Lengths are SVG user
units; every chart has a table beside it that says the same in figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.summary import stage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.bench.types import Interval, ShapeResult, Timing
    from pipeline.report.schema import Report, TargetReport

LABEL_WIDTH = 118.0
PANEL_WIDTH = 360.0
ROW_HEIGHT = 26.0
TOP = 8.0

SPEED_WIDTH = 760.0
SPEED_ROW = 52.0
BAR_LEFT, BAR_RIGHT = 100.0, 410.0
RATIO_LEFT, RATIO_RIGHT = 520.0, 748.0

SIZE_WIDTH = 760.0
SIZE_ROW = 30.0
SIZE_LEFT, SIZE_RIGHT = 150.0, 640.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis, with its label."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured value; `is_floor` when it is zero and stands at the edge of a log axis."""

    x: float
    y: float
    is_floor: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The values of one output through the stages; `style` numbers colour and marker."""

    name: str
    style: int
    points: tuple[Point, ...]

    @property
    def polyline(self) -> str:
        """The points as SVG wants them."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorChart:
    """How the relative L2 of one target grows from stage to stage, on a log axis."""

    target: str
    width: float
    height: float
    left: float
    bottom: float
    ticks: tuple[Tick, ...]
    stages: tuple[Tick, ...]
    lines: tuple[Line, ...]


def error_charts(report: Report) -> tuple[ErrorChart, ...]:
    """One chart for each target that was compared, all on the same axis."""
    values = [
        value
        for target in report.targets
        for error in stage_errors(target)
        if (value := error.output.metrics.relative_l2) is not None and _is_positive(value)
    ]
    if not values:
        return ()
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    charts = (_error_chart(target, low, high) for target in report.targets)
    return tuple(chart for chart in charts if chart.lines)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _error_chart(target: TargetReport, low: int, high: int) -> ErrorChart:
    left, right = LABEL_WIDTH, PANEL_WIDTH - 14
    nodes = list(dict.fromkeys(link.node for link in target.parity))
    stage_of = {link.node: link.stage for link in target.parity}
    heights = {node: TOP + ROW_HEIGHT * (place + 0.5) for place, node in enumerate(nodes)}
    points: dict[str, list[Point]] = {}
    for error in stage_errors(target):
        value = error.output.metrics.relative_l2
        if value is None or not math.isfinite(value) or value < 0:
            continue
        share = (math.log10(value) - low) / (high - low) if value else 0.0
        points.setdefault(error.output.name, []).append(
            Point(
                x=left + share * (right - left),
                y=heights[error.stage.node],
                is_floor=value == 0,
                text=f"{error.output.name} after {error.stage.node}: {figures.figure(value, 3)}",
            )
        )
    bottom = TOP + ROW_HEIGHT * len(nodes)
    step = max(1, math.ceil((high - low) / 5))
    return ErrorChart(
        target=target.name,
        width=PANEL_WIDTH,
        height=bottom + 22,
        left=left,
        bottom=bottom,
        ticks=tuple(
            Tick(at=left + (decade - low) / (high - low) * (right - left), text=f"1e{decade}")
            for decade in range(low, high + 1, step)
        ),
        stages=tuple(Tick(at=heights[node], text=clipped(stage_of[node], 18)) for node in nodes),
        lines=tuple(
            Line(name=name, style=place % 4, points=tuple(line))
            for place, (name, line) in enumerate(points.items())
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A median with its interval: a bar with a whisker."""

    y: float
    length: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """One shape: both latencies on a scale of their own, and the speedup on the shared axis."""

    y: float
    label: str
    reference: Bar
    candidate: Bar
    ratio_at: float
    ratio_low: float
    ratio_high: float
    floor_low: float
    floor_high: float
    text: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedChart:
    """Latency and speedup of one target, shape by shape."""

    target: str
    height: float
    left: float
    bottom: float
    margin_low: float
    margin_high: float
    ticks: tuple[Tick, ...]
    rows: tuple[SpeedRow, ...]


def speed_charts(report: Report) -> tuple[SpeedChart, ...]:
    """One chart for each target that was timed; the speedup axis is the same in all."""
    timed = [target for target in report.targets if target.benchmark and target.benchmark.shapes]
    shapes = [shape for target in timed if target.benchmark for shape in target.benchmark.shapes]
    ends = [end for s in shapes for end in (s.speedup_interval.low, s.speedup_interval.high)]
    known = [end for end in ends if _is_positive(end)]
    low, high = min([*known, 0.8]) / 1.05, max([*known, 1.25]) * 1.05
    return tuple(_speed_chart(target, low, high) for target in timed)


def _speed_chart(target: TargetReport, low: float, high: float) -> SpeedChart:
    assert target.benchmark is not None
    axis = _LogAxis(low, high, RATIO_LEFT, RATIO_RIGHT)
    shapes, margin = target.benchmark.shapes, target.benchmark.margin
    bottom = 18 + SPEED_ROW * len(shapes)
    marks = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    return SpeedChart(
        target=target.name,
        height=bottom + 22,
        left=BAR_LEFT,
        bottom=bottom,
        margin_low=axis.at(1 / (1 + margin)),
        margin_high=axis.at(1 + margin),
        ticks=tuple(
            Tick(at=axis.at(mark), text=f"{mark:g}{figures.TIMES}")
            for mark in marks
            if low <= mark <= high
        ),
        rows=tuple(
            _speed_row(shape, 18 + SPEED_ROW * place, axis) for place, shape in enumerate(shapes)
        ),
    )


@dataclass(frozen=True, slots=True)
class _LogAxis:
    low: float
    high: float
    left: float
    right: float

    def at(self, value: float) -> float:
        """Where the value is; values beyond the ends stand at the ends."""
        if not _is_positive(value):
            return self.left
        span = math.log(self.high / self.low)
        share = math.log(min(max(value, self.low), self.high) / self.low) / span
        return self.left + share * (self.right - self.left)


def _speed_row(shape: ShapeResult, y: float, axis: _LogAxis) -> SpeedRow:
    ends = [
        end
        for timing in (shape.reference, shape.candidate)
        for end in (timing.latency_p50_ms, timing.latency_p50_ms_interval.high)
    ]
    longest = max((end for end in ends if _is_positive(end)), default=1.0)
    scale = (BAR_RIGHT - BAR_LEFT) / longest
    interval, floor = shape.speedup_interval, shape.noise_floor
    return SpeedRow(
        y=y,
        label=figures.times(shape.label),
        reference=_bar(shape.reference, y + 12, scale),
        candidate=_bar(shape.candidate, y + 31, scale),
        ratio_at=axis.at(shape.speedup),
        ratio_low=axis.at(interval.low),
        ratio_high=axis.at(interval.high),
        floor_low=axis.at(1 - floor),
        floor_high=axis.at(1 + floor),
        text=f"{figures.ratio(shape.speedup)} ({_range(interval)}), {shape.verdict}",
        verdict=shape.verdict,
    )


def _bar(timing: Timing, y: float, scale: float) -> Bar:
    interval = timing.latency_p50_ms_interval
    low, high = (_length(end, scale) for end in (interval.low, interval.high))
    return Bar(
        y=y,
        length=_length(timing.latency_p50_ms, scale),
        low=low,
        high=high,
        text=figures.milliseconds(timing.latency_p50_ms),
    )


def _length(value: float, scale: float) -> float:
    return value * scale if _is_positive(value) else 0.0


def _range(interval: Interval) -> str:
    return f"{figures.ratio(interval.low)} to {figures.ratio(interval.high)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One file in a size bar."""

    x: float
    width: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBar:
    """All files of one target, the largest first."""

    y: float
    label: str
    total: str
    end: float
    segments: tuple[Segment, ...]
    is_reference: bool


def size_bars(report: Report) -> tuple[SizeBar, ...]:
    """The checkpoint, when its size is known, and every target that has files."""
    rows: list[tuple[str, bool, Sequence[tuple[str, int]]]] = []
    known = [t.benchmark.reference_size_bytes for t in report.targets if t.benchmark]
    if known:
        rows.append(("checkpoint", True, [("checkpoint", known[0])]))
    for target in report.targets:
        files = sorted(target.files, key=lambda file: -file.size_bytes)
        if files:
            rows.append((target.name, False, [(file.path, file.size_bytes) for file in files]))
    longest = max((sum(size for _, size in parts) for _, _, parts in rows), default=0)
    scale = (SIZE_RIGHT - SIZE_LEFT) / longest if longest else 0.0
    return tuple(_size_bar(place * SIZE_ROW, row, scale) for place, row in enumerate(rows))


def _size_bar(y: float, row: tuple[str, bool, Iterable[tuple[str, int]]], scale: float) -> SizeBar:
    label, is_reference, parts = row
    x, total, segments = SIZE_LEFT, 0, []
    for name, size in parts:
        width = size * scale
        if width >= 0.5:  # smaller ones would only smear
            segments.append(Segment(x=x, width=width, text=f"{name}: {figures.size(size)}"))
        x += width
        total += size
    return SizeBar(
        y=y,
        label=clipped(label, 20),
        total=figures.size(total),
        end=x,
        segments=tuple(segments),
        is_reference=is_reference,
    )


def clipped(text: str, limit: int) -> str:
    """The text on one line, at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
