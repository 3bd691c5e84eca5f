"""Lays the plan out as a picture: columns by depth, arrows from inputs to what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.charts import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.report.schema import NodeReport

BOX_WIDTH, BOX_HEIGHT = 154.0, 42.0
GAP_X, GAP_Y = 34.0, 12.0
MARGIN = 4.0
MAX_NODES = 120
"""Beyond this a picture explains nothing; the table beside it has every node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One node; `index` is its place in the report."""

    index: int
    x: float
    y: float
    title: str
    label: str
    state: str
    took: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The whole plan; `arrows` are SVG paths, those left out that others imply."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]


def picture(nodes: Sequence[NodeReport]) -> Picture | None:
    """The plan as boxes and arrows; None when there is nothing, or too much, to draw."""
    if not 0 < len(nodes) <= MAX_NODES:
        return None
    columns: dict[int, list[int]] = {}
    for index, depth in enumerate(_depths(nodes)):
        columns.setdefault(depth, []).append(index)
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for depth, members in sorted(columns.items()):
        ordered = sorted(members, key=lambda index: (_pull(nodes[index], places), index))
        for row, index in enumerate(ordered):
            x = MARGIN + depth * (BOX_WIDTH + GAP_X)
            y = MARGIN + row * (BOX_HEIGHT + GAP_Y)
            places[nodes[index].name] = (x, y)
            boxes.append(_box(index, nodes[index], x, y))
    rows = max(len(members) for members in columns.values())
    return Picture(
        width=2 * MARGIN + (max(columns) + 1) * (BOX_WIDTH + GAP_X) - GAP_X,
        height=2 * MARGIN + rows * (BOX_HEIGHT + GAP_Y) - GAP_Y,
        box_width=BOX_WIDTH,
        box_height=BOX_HEIGHT,
        boxes=tuple(boxes),
        arrows=tuple(_arrows(nodes, places)),
    )


def _depths(nodes: Sequence[NodeReport]) -> list[int]:
    """Longest way from a node without inputs; a report is data, so cycles must end too."""
    depths = {node.name: 0 for node in nodes}
    for _ in nodes:
        changed = False
        for node in nodes:
            before = [depths[name] for name in node.inputs if name in depths]
            depth = min(max(before, default=-1) + 1, len(nodes))
            changed |= depth != depths[node.name]
            depths[node.name] = depth
        if not changed:
            break
    return [depths[node.name] for node in nodes]


def _ancestors(nodes: Sequence[NodeReport]) -> dict[str, set[str]]:
    """All that each node hangs on; nodes are taken by depth, so their inputs come first."""
    found: dict[str, set[str]] = {}
    for _, node in sorted(zip(_depths(nodes), nodes, strict=True), key=lambda pair: pair[0]):
        found[node.name] = {*node.inputs}.union(*(found.get(name, ()) for name in node.inputs))
    return found


def _pull(node: NodeReport, places: Mapping[str, tuple[float, float]]) -> float:
    """The mean height of a node's inputs: ordering by it keeps arrows from crossing."""
    heights = [places[name][1] for name in node.inputs if name in places]
    return sum(heights) / len(heights) if heights else 0.0


def _box(index: int, node: NodeReport, x: float, y: float) -> Box:
    title, _, label = node.name.partition("@")
    return Box(
        index=index,
        x=x,
        y=y,
        title=clipped(title, 19),
        label=clipped(label, 15),
        state=node.state,
        took="" if node.state == "hit" else figures.seconds(node.wall_time_s),
        name=node.name,
    )


def _arrows(nodes: Sequence[NodeReport], places: Mapping[str, tuple[float, float]]) -> list[str]:
    arrows = []
    before = _ancestors(nodes)
    for node in nodes:
        end_x, end_y = places[node.name]
        for name in node.inputs:
            implied = any(name in before.get(other, ()) for other in node.inputs if other != name)
            if name not in places or implied:
                continue
            start_x, start_y = places[name]
            x1, y1 = start_x + BOX_WIDTH, start_y + BOX_HEIGHT / 2
            x2, y2 = end_x, end_y + BOX_HEIGHT / 2
            bend = max((x2 - x1) / 2, GAP_X / 2)
            arrows.append(
                f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} "
                f"{x2:.1f} {y2:.1f}"
            )
    return arrows
