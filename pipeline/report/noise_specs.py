"""The charts of noise: by stage with its limit, and by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.report import figures
from pipeline.report.noise import known_noises
from pipeline.report.spec_parts import (
    PLAIN,
    SHAPES,
    Range,
    Spec,
    decades,
    hue_scale,
    lite_chart,
    log_axis,
    name_rows,
    tooltips,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.report.checks import LayerWalk
    from pipeline.report.noise import StageNoise

BAD, INK = "var(--bad)", "var(--ink)"

MAX_OUTPUTS = len(SHAPES)
"""Of one chart, each with a mark of its own; a decoder has two more outputs for each layer."""

MAX_LAYERS = 400
"""Of one chart; of more, the page's table has them."""


def noise_specs(targets: Sequence[str], tables: Sequence[Sequence[StageNoise]]) -> dict[str, Spec]:
    """Target -> noise of each output after each stage with its limit; one axis for all targets.

    Args:
        targets: Names, in the order of the tables.
        tables: Of each target.
    """
    span = decades(known_noises(tables))
    if span is None:
        return {}
    return {
        target: _noise_spec(target, _values(table, span), span)
        for target, table in zip(targets, tables, strict=True)
        if any(row.noise is not None for row in table)
    }


def _nearest(values: Sequence[dict[str, Any]]) -> list[str]:
    """The outputs that a chart shows, in their order: those that fail, then the nearest to a limit."""
    outputs = list(dict.fromkeys(row["output"] for row in values))
    if len(outputs) <= MAX_OUTPUTS:
        return outputs
    worst = dict.fromkeys(outputs, (False, 0.0))
    for row in values:
        share = row["x"] / row["limit"] if row["limit"] else 0.0
        worst[row["output"]] = max(worst[row["output"]], (row["is"] == "fails", share))
    kept = sorted(outputs, key=lambda name: worst[name], reverse=True)[:MAX_OUTPUTS]
    return [name for name in outputs if name in kept]


def _values(table: Iterable[StageNoise], span: Range) -> list[dict[str, Any]]:
    rows = [row for row in table if row.noise is not None and math.isfinite(row.noise)]
    repeated = len({row.stage for row in rows}) < len({row.node for row in rows})
    several = len({row.component for row in rows}) > 1
    return [
        {
            "stage": row.node if repeated else row.stage,
            "output": f"{row.component}: {row.output}" if several else row.output,
            "x": span.held(row.noise or 0.0),
            "limit": None if row.limit is None else span.held(row.limit),
            "floor": None if row.floor is None else span.held(row.floor),
            "shown": figures.figure(row.noise, 3),
            "allowed": figures.figure(row.limit, 3),
            "least": figures.figure(row.floor, 3),
            "share": figures.share(row.share),
            "worst": row.worst,
            "node": row.node,
            "is": "holds" if row.holds else "fails",
        }
        for row in rows
    ]


def _noise_spec(target: str, values: list[dict[str, Any]], span: Range) -> Spec:
    count = len({row["output"] for row in values})
    outputs = _nearest(values)
    values = [row for row in values if row["output"] in outputs]
    left_out: Spec = {}
    if len(outputs) < count:
        text = f"{len(outputs)} of {count} outputs, the nearest to their limits"
        left_out["title"] = {
            "text": text,
            "anchor": "start",
            "fontSize": 11,
            "fontWeight": "normal",
            "color": "var(--muted)",
        }
    limited = [row for row in values if row["limit"] is not None]
    banded = [row for row in limited if row["floor"] is not None]
    told = tooltips(
        output="output", node="after", shown="noise", worst="of", least="noise_floor",
        allowed="limit", share="of_the_limit",
    )  # fmt: skip
    return lite_chart(
        f"Noise of {target} after each stage with its limit, on a log axis",
        values,
        **left_out,
        height={"step": 17, "for": "offset"},
        encoding={
            "y": {"field": "stage", **name_rows(row["stage"] for row in values)},
            "yOffset": {"field": "output", "sort": None, "scale": {"domain": outputs}},
        },
        layer=[
            {
                "data": {"values": banded},
                "mark": {"type": "rule", "strokeWidth": 9, "stroke": PLAIN, "opacity": 0.28},
                "encoding": {
                    "x": {"field": "floor", **log_axis(span)},
                    "x2": {"field": "limit"},
                    "tooltip": told,
                },
            },
            {
                "data": {"values": limited},
                "mark": {"type": "tick", "thickness": 2, "size": 15, "color": INK, "opacity": 1},
                "encoding": {"x": {"field": "limit", **log_axis(span)}, "tooltip": told},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 62, "opacity": 1},
                "encoding": {
                    "x": {"field": "x", **log_axis(span)},
                    "color": _bad_or({"field": "output", **hue_scale(outputs)}),
                    "shape": {
                        "field": "output",
                        "type": "nominal",
                        "scale": {
                            "domain": outputs,
                            "range": [SHAPES[i % len(SHAPES)] for i in range(len(outputs))],
                        },
                    },
                    "tooltip": told,
                },
            },
        ],
    )


def _bad_or(encoding: Spec) -> Spec:
    return {"condition": {"test": "datum.is === 'fails'", "value": BAD}} | encoding


def layer_spec(walk: LayerWalk) -> Spec | None:
    """Noise of each value in the order of the graph, and what each one adds; None without numbers."""
    layers = walk.layers[:MAX_LAYERS]
    known = [value for layer in layers for value in (layer.noise, layer.added) if value]
    span = decades(known)
    if span is None:
        return None
    low = span.domain[0]
    values: list[dict[str, Any]] = [
        {
            "place": layer.place,
            "noise": None if layer.noise is None else span.held(layer.noise),
            "added": None if not layer.added else span.held(layer.added),
            "low": low,
            "layer": layer.title,
            "operator": layer.operator,
            "shown": figures.figure(layer.noise, 3),
            "own": figures.figure(layer.added, 3),
            "cosine": figures.cosine(layer.cosine),
            "is": "fails" if layer.is_first else "holds",
        }
        for layer in layers
    ]
    first = [row for row in values if row["is"] == "fails"]
    spec = _layer_spec(values, first, span)
    if walk.limit is not None and span.domain[0] < walk.limit < span.domain[1]:
        spec["layer"].append(
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "stroke": INK, "strokeDash": [2, 3], "opacity": 0.7},
                "encoding": {"x": None, "y": {"datum": walk.limit, "type": "quantitative"}},
            }
        )
    return spec


def _layer_spec(
    values: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]], span: Range
) -> Spec:
    told = tooltips(
        layer="layer", operator="operator", place="place", shown="noise", own="added",
        cosine="cosine",
    )  # fmt: skip
    x: Spec = {
        "field": "place",
        "type": "quantitative",
        "scale": {"domain": [0.5, len(values) + 0.5], "nice": False},
        "axis": {"title": "values in the order of the graph", "tickMinStep": 1, "grid": False},
    }
    y: Spec = log_axis(span)
    y["axis"] = y["axis"] | {"grid": True}
    marked: list[Spec] = [
        {
            "data": {"values": list(first)},
            "mark": {"type": "rule", "stroke": BAD, "strokeDash": [4, 3], "strokeWidth": 1.5},
            "encoding": {"x": x, "tooltip": told},
        }
    ]
    is_right = bool(first) and first[0]["place"] > len(values) / 2
    if first:
        marked.append(
            {
                "data": {"values": list(first)},
                "mark": {
                    "type": "text",
                    "align": "right" if is_right else "left",
                    "dx": -6 if is_right else 6,
                    "baseline": "top",
                    "color": BAD,
                    "limit": 330,
                },
                "encoding": {"x": x, "y": {"value": 2}, "text": {"field": "layer"}},
            }
        )
    return lite_chart(
        "Noise of inner values in the order of the graph, and what each adds, on a log axis",
        values,
        height=210,
        layer=[
            {
                "mark": {
                    "type": "rule",
                    "strokeWidth": 3,
                    "stroke": "var(--fourth)",
                    "opacity": 0.75,
                },
                "encoding": {
                    "x": x,
                    "y": {"field": "low", **y},
                    "y2": {"field": "added"},
                    "tooltip": told,
                },
                "transform": [{"filter": "datum.added !== null"}],
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.4, "stroke": "var(--accent)"},
                "encoding": {"x": x, "y": {"field": "noise", **y}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": {"field": "noise", **y},
                    "color": {
                        "condition": {"test": "datum.is === 'fails'", "value": BAD},
                        "value": "var(--accent)",
                    },
                    "tooltip": told,
                },
            },
            *marked,
        ],
    )
