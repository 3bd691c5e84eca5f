"""Parts that all charts of `report.html` share: colours, axes, and what a Vega-Lite chart begins with.

Colours are the page's own CSS variables, so that a chart follows the colour scheme and the printer
without being drawn anew. Texts of the report stand in values only, never in field names or
expressions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Spec: TypeAlias = dict[str, Any]

LITE = "https://vega.github.io/schema/vega-lite/v6.json"
VEGA = "https://vega.github.io/schema/vega/v6.json"
"""Names of the languages; nothing is loaded from there."""

PLAIN = "var(--plain)"
HUES = tuple(f"var(--{hue})" for hue in ("accent", "second", "third", "fourth", "fifth", "sixth"))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

FONT = '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, system-ui, sans-serif'

CONFIG: Spec = {
    "background": None,
    "font": FONT,
    "padding": 2,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "titleFontSize": 11,
        "labelFontSize": 11,
        "gridColor": "var(--rule)",
        "domain": False,
        "tickColor": "var(--rule)",
        "labelLimit": 150,
        "labelPadding": 6,
    },
    "axisX": {"labelColor": "var(--muted)", "labelFlush": False},
    "axisY": {"grid": False, "ticks": False},
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "labelLimit": 220,
        "orient": "bottom",
        "symbolOpacity": 1,
    },
    "text": {"fill": "var(--ink)", "fontSize": 11},
}
"""Of all charts; Vega takes what it knows of it."""


LEGEND_COLUMNS: Final = 2
"""Names of outputs as long as `present.10.value`, beside each other in a third of the page."""


@dataclass(frozen=True, slots=True)
class Range:
    """Whole decades of a log axis."""

    low: int
    high: int

    @property
    def domain(self) -> list[float]:
        """Both ends as values."""
        return [10.0**self.low, 10.0**self.high]

    def held(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond; zero lies at the low end."""
        low, high = self.domain
        return min(max(value, low), high)


def decades(values: Iterable[float]) -> Range | None:
    """The decades that hold all values above zero; None when there are none.

    At most sixteen: below that, float64 has nothing to say of a relative error.
    """
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known:
        return None
    high = math.ceil(math.log10(max(known)))
    low = max(math.floor(math.log10(min(known))), high - 16)
    return Range(low, max(high, low + 1))


def log_axis(span: Range) -> Spec:
    """A horizontal log axis of whole decades."""
    return {
        "type": "quantitative",
        "scale": {"type": "log", "domain": span.domain, "nice": False},
        "axis": {"title": None, "format": ".0e", "tickCount": min(6, span.high - span.low + 1)},
    }


def hue_scale(names: Sequence[str], *, legend: bool = True) -> Spec:
    """A colour for each name, in the given order."""
    return {
        "type": "nominal",
        "scale": {
            "domain": list(names),
            "range": [HUES[i % len(HUES)] for i in range(len(names))],
        },
        "legend": hue_legend(names) if legend else None,
    }


def hue_legend(names: Sequence[str]) -> Spec:
    """What the colours mean; many names stand in columns, so that a narrow chart holds them."""
    columns = {"columns": LEGEND_COLUMNS} if len(names) > LEGEND_COLUMNS else {}
    return {"title": None, **columns}


def name_rows(names: Iterable[str]) -> Spec:
    """A vertical axis of names, in the given order."""
    return {
        "type": "nominal",
        "sort": None,
        "scale": {"domain": list(dict.fromkeys(names))},
        "axis": {"title": None},
    }


def tooltips(**titles: str) -> list[Spec]:
    """Field -> what it is called in the box at the pointer; `_` stands for a blank."""
    return [{"field": field, "title": title.replace("_", " ")} for field, title in titles.items()]


def lite_chart(description: str, values: Sequence[Mapping[str, object]], **rest: Any) -> Spec:
    """A Vega-Lite chart as wide as its place.

    Args:
        description: What it shows, for those who cannot see it.
        values: Its data.
        **rest: Keys of the specification.
    """
    return {
        "$schema": LITE,
        "description": description,
        "width": "container",
        "data": {"values": list(values)},
        **rest,
    }
