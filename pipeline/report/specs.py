"""The charts of `report.html` as Vega-Lite 6 and Vega 6 specifications: plain dicts.

What a chart shows in hues is in a table of the page as well.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from pipeline.report import figures
from pipeline.report.sizes import PLAIN_KINDS
from pipeline.report.spec_parts import (
    FONT,
    HUES,
    PLAIN,
    SHAPES,
    VEGA,
    Range,
    Spec,
    decades,
    hue_legend,
    hue_scale,
    lite_chart,
    log_axis,
    name_rows,
    tooltips,
)
from pipeline.report.summary import place, stage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.bench.types import ShapeResult, Timing
    from pipeline.report.distributions import Spread
    from pipeline.report.schema import Report, SampleSizes, TargetReport
    from pipeline.report.sizes import SizeNode


# --- error by stage -----------------------------------------------------------------------------


def error_specs(report: Report) -> dict[str, Spec]:
    """Target -> relative L2 of each output after each stage; one axis for all targets."""
    errors = {target.name: _error_values(target) for target in report.targets}
    span = decades(row["error"] for rows in errors.values() for row in rows)
    if span is None:
        return {}
    return {
        target: _error_spec(target, [row | {"x": span.held(row["error"])} for row in rows], span)
        for target, rows in errors.items()
        if rows
    }


def _error_values(target: TargetReport) -> list[dict[str, Any]]:
    stages = [error.stage for error in stage_errors(target)]
    several = len({stage.component for stage in stages}) > 1
    nodes = list(dict.fromkeys((stage.node, stage.stage) for stage in stages))
    repeated = len({stage for _, stage in nodes}) < len(nodes)
    values = []
    for error in stage_errors(target):
        value = error.output.metrics.relative_l2
        if value is None or not math.isfinite(value) or value < 0:
            continue
        stage = error.stage
        name = error.output.name
        values.append(
            {
                "stage": stage.node if repeated else stage.stage,
                "output": f"{stage.component}: {name}" if several else name,
                "error": value,
                "shown": figures.figure(value, 3),
                "added": figures.signed(error.added_relative_l2),
                "node": stage.node,
                "step": nodes.index((stage.node, stage.stage)),
            }
        )
    return values


def _error_spec(target: str, values: list[dict[str, Any]], span: Range) -> Spec:
    outputs = list(dict.fromkeys(row["output"] for row in values))
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(outputs))]
    return lite_chart(
        f"Relative L2 of {target} after each stage, on a log axis",
        values,
        height={"step": 26},
        encoding={
            "x": {"field": "x", **log_axis(span)},
            "y": {"field": "stage", **name_rows(row["stage"] for row in values)},
            "color": {"field": "output", **hue_scale(outputs)},
        },
        layer=[
            {
                "mark": {"type": "line", "strokeWidth": 1.6},
                "encoding": {"order": {"field": "step", "type": "quantitative"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {
                    "shape": {
                        "field": "output",
                        "type": "nominal",
                        "scale": {"domain": outputs, "range": shapes},
                        "legend": hue_legend(outputs),
                    },
                    "tooltip": tooltips(
                        output="output", node="after", shown="relative_L2", added="added"
                    ),
                },
            },
        ],
    )


# --- error of single samples --------------------------------------------------------------------


def spread_spec(spreads: Sequence[Spread]) -> Spec | None:
    """Every sample a tick; quartiles and median over them. None when all errors are zero."""
    span = decades(value for spread in spreads for _, value in spread.points)
    if span is None:
        return None
    series = list(dict.fromkeys(spread.series for spread in spreads))
    points = [
        {
            "target": spread.target,
            "output": spread.series,
            "x": span.held(value),
            "shown": figures.figure(value, 3),
            "sample": index,
        }
        for spread in spreads
        for index, value in spread.points
    ]
    boxes = [
        {
            "target": spread.target,
            "output": spread.series,
            "low": span.held(spread.lower),
            "x": span.held(spread.median),
            "high": span.held(spread.upper),
            "median": figures.figure(spread.median, 3),
            "p95": figures.figure(spread.p95, 3),
            "most": figures.figure(spread.most, 3),
        }
        for spread in spreads
    ]
    told = tooltips(target="target", output="output", median="median", p95="p95", most="largest")
    return lite_chart(
        "Relative L2 of single samples, by target and output, on a log axis",
        points,
        height={"step": 22, "for": "offset"},
        encoding={
            "x": {"field": "x", **log_axis(span)},
            "y": {"field": "target", **name_rows(spread.target for spread in spreads)},
            "yOffset": {"field": "output", "sort": None, "scale": {"domain": series}},
            "color": {"field": "output", **hue_scale(series)},
        },
        layer=[
            {
                "mark": {"type": "tick", "thickness": 1.4, "size": 16, "opacity": 0.35},
                "encoding": {
                    "tooltip": tooltips(
                        target="target", output="output", sample="sample", shown="relative_L2"
                    )
                },
            },
            {
                "data": {"values": boxes},
                "mark": {"type": "rule", "strokeWidth": 2.5},
                "encoding": {
                    "x": {"field": "low", **log_axis(span)},
                    "x2": {"field": "high"},
                    "color": {"value": "var(--ink)"},
                    "tooltip": told,
                },
            },
            {
                "data": {"values": boxes},
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 60,
                    "opacity": 1,
                    "fill": "var(--paper)",
                    "stroke": "var(--ink)",
                    "strokeWidth": 1.6,
                },
                "encoding": {"tooltip": told},
            },
        ],
    )


# --- speed --------------------------------------------------------------------------------------

TORCH, OURS = "torch", "target"


MAX_SHAPES = 24


def latency_specs(report: Report) -> dict[str, Spec]:
    """Shape -> median latency with its interval, of torch and of each target, from zero.

    Shapes differ by orders of magnitude, so each has an axis of its own; at most `MAX_SHAPES`.
    """
    timed = _timed(report)
    names = list(dict.fromkeys(target.name for target, _ in timed))
    found = {}
    for at in list(dict.fromkeys(figures.times(place(shape)) for _, shape in timed))[:MAX_SHAPES]:
        values = [
            {
                "target": target.name,
                "who": who,
                "x": timing.latency_p50_ms,
                "low": timing.latency_p50_ms_interval.low,
                "high": timing.latency_p50_ms_interval.high,
                "shown": figures.milliseconds(timing.latency_p50_ms),
                "range": _milliseconds(timing),
            }
            for target, shape in timed
            if figures.times(place(shape)) == at
            for who, timing in ((TORCH, shape.reference), (OURS, shape.candidate))
            if _are_positive(timing.latency_p50_ms, *_ends(timing.latency_p50_ms_interval))
        ]
        if values:
            found[at] = _latency_spec(at, values, names)
    return found


def _latency_spec(at: str, values: list[dict[str, Any]], names: list[str]) -> Spec:
    told = tooltips(target="target", who="of", shown="median", range="95_%_interval")
    hues = hue_scale(names, legend=False)
    return lite_chart(
        f"Median latency with its 95 % interval at {at}, in milliseconds",
        values,
        height={"step": 18, "for": "offset"},
        encoding={
            "y": {"field": "target", **name_rows(row["target"] for row in values)},
            "yOffset": {"field": "who", "sort": None, "scale": {"domain": [TORCH, OURS]}},
        },
        layer=[
            {
                "mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.5},
                "encoding": {
                    "x": {
                        "field": "low",
                        "type": "quantitative",
                        "scale": {"zero": True},
                        "axis": {"title": "ms", "tickCount": 5},
                    },
                    "x2": {"field": "high"},
                    "color": _torch_or({"field": "target", **hues}, "var(--plain)"),
                    "tooltip": told,
                },
            },
            {
                "mark": {"type": "point", "size": 40, "opacity": 1, "filled": True},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "shape": {
                        "field": "who",
                        "type": "nominal",
                        "scale": {"domain": [TORCH, OURS], "range": ["diamond", "circle"]},
                        "legend": None,
                    },
                    "color": _torch_or({"field": "target", **hues}, "var(--plain)"),
                    "tooltip": told,
                },
            },
        ],
    )


def _torch_or(encoding: Spec, colour: str) -> Spec:
    return {"condition": {"test": f"datum.who === '{TORCH}'", "value": colour}} | encoding


def speedup_spec(report: Report) -> Spec | None:
    """Speedup over torch with its interval, the noise floor behind it, shape by shape."""
    values: list[dict[str, Any]] = [
        {
            "shape": figures.times(place(shape)),
            "target": target.name,
            "x": shape.speedup,
            "low": shape.speedup_interval.low,
            "high": shape.speedup_interval.high,
            "floor_low": 1 / (1 + shape.noise_floor),
            "floor_high": 1 + shape.noise_floor,
            "shown": figures.ratio(shape.speedup),
            "range": " to ".join(figures.ratio(end) for end in _ends(shape.speedup_interval)),
            "floor": f"±{figures.percent(shape.noise_floor)}",
            "verdict": shape.verdict,
            "at": shape.description,
        }
        for target, shape in _timed(report)
        if _are_positive(shape.speedup, *_ends(shape.speedup_interval))
        and 0 <= shape.noise_floor < math.inf
    ]
    if not values:
        return None
    told = tooltips(
        target="target", at="at", shown="speedup", range="95_%_interval", floor="noise_floor",
        verdict="verdict",
    )  # fmt: skip
    ends = [row[end] for row in values for end in ("low", "high", "floor_low", "floor_high")]
    axis = _ratio_x(ends)
    return lite_chart(
        "Speedup over torch with its 95 % interval by shape and target, on a log axis",
        values,
        height={"step": 20, "for": "offset"},
        encoding={
            "y": {"field": "shape", **name_rows(str(row["shape"]) for row in values)},
            "yOffset": _targets_offset(values),
        },
        layer=[
            {
                "mark": {"type": "rule", "stroke": "var(--muted)"},
                "data": {"values": [{}]},
                "encoding": {"x": {"datum": 1, **axis}, "y": None, "yOffset": None},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 12, "stroke": PLAIN, "opacity": 0.35},
                "encoding": {
                    "x": {"field": "floor_low", **axis},
                    "x2": {"field": "floor_high"},
                    "tooltip": told,
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.5},
                "encoding": {
                    "x": {"field": "low", **axis},
                    "x2": {"field": "high"},
                    "color": {"field": "target", **hue_scale(_names(values, "target"))},
                    "tooltip": told,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 38, "opacity": 1},
                "encoding": {
                    "x": {"field": "x", **axis},
                    "color": {"field": "target", **hue_scale(_names(values, "target"))},
                    "tooltip": told,
                },
            },
        ],
    )


def _timed(report: Report) -> list[tuple[TargetReport, ShapeResult]]:
    return [
        (target, shape)
        for target in report.targets
        if target.benchmark
        for shape in target.benchmark.shapes
    ]


def _ratio_x(values: Iterable[float]) -> Spec:
    """A log axis of ratios around one, a little wider than the values."""
    known = list(values)
    first, last = min([*known, 0.8]) / 1.06, max([*known, 1.25]) * 1.06
    marks = [
        base * 10.0**power
        for power in range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        for base in ((1, 1.5, 2, 3, 5) if last / first < 10 else (1, 2, 5))
    ]
    if last / first > 1000:
        marks = marks[::3]
    return {
        "type": "quantitative",
        "scale": {"type": "log", "domain": [first, last], "nice": False},
        "axis": {
            "title": None,
            "labelExpr": f"format(datum.value, '~g') + '{figures.TIMES}'",
            "values": [mark for mark in marks if first <= mark <= last],
        },
    }


def _targets_offset(values: Sequence[Mapping[str, object]]) -> Spec:
    return {"field": "target", "sort": None, "scale": {"domain": _names(values, "target")}}


def _names(values: Sequence[Mapping[str, object]], field: str) -> list[str]:
    return list(dict.fromkeys(str(row[field]) for row in values))


def _ends(interval: Any) -> tuple[float, float]:
    return interval.low, interval.high


def _milliseconds(timing: Timing) -> str:
    return " to ".join(figures.milliseconds(end) for end in _ends(timing.latency_p50_ms_interval))


def _are_positive(*values: float) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


# --- size ---------------------------------------------------------------------------------------

TREEMAP_HEIGHT = 340


def size_spec(nodes: Sequence[SizeNode]) -> Spec | None:
    """A treemap: targets, in them what they are made of, coloured by element type."""
    kinds = list(dict.fromkeys(node.kind for node in nodes if node.kind))
    if not kinds:
        return None
    hues = itertools.cycle(HUES)
    values = [
        {
            "id": node.identity,
            "parent": node.parent,
            "name": node.name,
            "kind": node.kind,
            "target": node.target,
            "shown": figures.size(node.size_bytes),
            "bytes": node.size_bytes if node.kind else None,
        }
        for node in nodes
    ]
    width = "datum.x1 - datum.x0"
    told = "{'target': datum.target, 'part': datum.name, 'type': datum.kind, 'size': datum.shown}"
    return {
        "$schema": VEGA,
        "description": "Sizes of the targets by what they are made of",
        "height": TREEMAP_HEIGHT,
        "padding": 2,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "signals": [
            {
                "name": "width",
                "init": "isFinite(containerSize()[0]) ? containerSize()[0] : 700",
                "on": [{"events": "window:resize", "update": "containerSize()[0]"}],
            }
        ],
        "data": [
            {
                "name": "tree",
                "values": values,
                "transform": [
                    {"type": "stratify", "key": "id", "parentKey": "parent"},
                    {
                        "type": "treemap",
                        "field": "bytes",
                        "sort": {"field": "value", "order": "descending"},
                        "method": "squarify",
                        "round": True,
                        "paddingInner": 2,
                        "paddingTop": 18,
                        "size": [{"signal": "width"}, {"signal": "height"}],
                    },
                ],
            },
            {
                "name": "groups",
                "source": "tree",
                "transform": [{"type": "filter", "expr": "datum.children"}],
            },
            {
                "name": "leaves",
                "source": "tree",
                "transform": [{"type": "filter", "expr": "!datum.children"}],
            },
        ],
        "scales": [
            {
                "name": "hue",
                "type": "ordinal",
                "domain": kinds,
                "range": [PLAIN if kind in PLAIN_KINDS else next(hues) for kind in kinds],
            }
        ],
        "legends": [
            {"fill": "hue", "direction": "horizontal", "orient": "bottom", "symbolType": "square",
             "symbolOpacity": 0.55, "columns": 5}
        ],
        "marks": [
            {
                "type": "rect",
                "from": {"data": "leaves"},
                "encode": {
                    "enter": {
                        "fill": {"scale": "hue", "field": "kind"},
                        "stroke": {"scale": "hue", "field": "kind"},
                        "tooltip": {"signal": told},
                    },
                    "update": {
                        **_corners(),
                        "fillOpacity": {"value": 0.3},
                        "strokeOpacity": {"value": 0.8},
                    },
                    "hover": {"fillOpacity": {"value": 0.55}},
                },
            },
            _size_text("groups", "datum.name + '  ' + datum.shown", 13, width, weight="bold"),
            _size_text("leaves", "datum.name", 15, width),
            _size_text("leaves", "datum.shown", 30, width, fill="var(--muted)"),
        ],
    }  # fmt: skip


def _corners() -> Spec:
    return {corner: {"field": corner} for corner in ("x0", "x1", "y0", "y1")} | {
        "x": {"field": "x0"},
        "x2": {"field": "x1"},
        "y": {"field": "y0"},
        "y2": {"field": "y1"},
    }


def _size_text(
    data: str,
    text: str,
    down: int,
    width: str,
    *,
    weight: str = "normal",
    fill: str = "var(--ink)",
) -> Spec:
    """One line in each rectangle that has room for it."""
    room = f"{width} > 34" + ("" if data == "groups" else f" && datum.y1 - datum.y0 > {down + 3}")
    return {
        "type": "text",
        "from": {"data": data},
        "interactive": False,
        "encode": {
            "enter": {
                "font": {"value": FONT},
                "fontSize": {"value": 11},
                "fontWeight": {"value": weight},
                "fill": {"value": fill},
                "ellipsis": {"value": "…"},
            },
            "update": {
                "text": {"signal": f"{room} ? {text} : ''"},
                "x": {"signal": f"datum.x0 + {0 if data == 'groups' else 5}"},
                "y": {"signal": f"datum.y0 + {down}"},
                "limit": {"signal": f"{width} - 8"},
            },
        },
    }


# --- samples ------------------------------------------------------------------------------------


def lengths_spec(sizes: SampleSizes) -> Spec | None:
    """How many samples have which size."""
    values = [{"size": size, "count": count} for size, count in sizes.counts]
    if not values:
        return None
    return lite_chart(
        "Evaluation samples by size",
        values,
        height=150,
        mark={"type": "bar", "fill": "var(--accent)", "binSpacing": 1},
        encoding={
            "x": {
                "field": "size",
                "type": "quantitative",
                "bin": {"maxbins": 30, "minstep": 1},
                "axis": {"title": sizes.axis},
            },
            "y": {
                "aggregate": "sum",
                "field": "count",
                "type": "quantitative",
                "axis": {"title": "samples", "grid": True, "tickMinStep": 1, "tickCount": 4},
            },
            "tooltip": [
                {"field": "size", "type": "quantitative", "bin": {"maxbins": 30, "minstep": 1},
                 "title": sizes.axis},
                {"aggregate": "sum", "field": "count", "title": "samples"},
            ],
        },
    )  # fmt: skip
