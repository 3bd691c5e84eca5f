"""Every form of the report names the shapes by the axes of the task that was measured."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import pytest

from pipeline.report import render_html, render_markdown, render_terminal_summary
from pipeline.report.figures import TIMES
from tests.report.example import benchmark, example_report, shape

if TYPE_CHECKING:
    from pipeline.report.schema import Report

CASES = [
    (("batch",), (32,), "Batch", "32", "batch 32"),
    (("batch", "sequence"), (8, 128), "Batch x sequence", "8 x 128", "8 x 128"),
    (
        ("batch", "num_choices", "sequence"),
        (32, 4, 512),
        "Batch x num_choices x sequence",
        "32 x 4 x 512",
        "32 x 4 x 512",
    ),
]


def report_at(axes: tuple[str, ...], sizes: tuple[int, ...]) -> Report:
    """The example report with one shape of these axes measured for every CPU target."""
    measured = shape(sizes[0], 1, 20.0, 10.0).model_copy(update={"axes": axes, "shape": sizes})
    result = benchmark("onnxruntime 1.31.1 fp32", 86.9, (measured,), 281.0)
    report = example_report()
    targets = tuple(
        target.model_copy(update={"benchmark": result if target.benchmark else None})
        for target in report.targets
    )
    return report.model_copy(update={"targets": targets})


@pytest.mark.parametrize(("axes", "sizes", "heading", "label", "place"), CASES)
def test_shapes_are_named_by_their_axes(
    axes: tuple[str, ...], sizes: tuple[int, ...], heading: str, label: str, place: str
) -> None:
    report = report_at(axes, sizes)
    assert f" at {place}" in render_terminal_summary(report)

    markdown = render_markdown(report)
    assert f"| Target | {heading} | Torch p50 |" in markdown
    assert f"| `cpu-fp32` | {label} |" in markdown
    assert f" at {place} |" in markdown

    page = html.unescape(render_html(report))
    heading, label, place = (t.replace(" x ", f" {TIMES} ") for t in (heading, label, place))
    assert f'<th scope="col">{heading}</th>' in page
    assert f"latency p50 by {heading.lower()}," in page
    assert f'<th scope="row">{label}</th>' in page
    assert re.search(f'<text class="end title"[^>]*>{label}</text>', page)
    assert f"at {place}, faster" in page


def test_axes_of_several_tasks_are_all_named() -> None:
    text, image = report_at(("batch", "sequence"), (8, 64)), report_at(("batch",), (8,))
    mixed = text.model_copy(update={"targets": (*text.targets, *image.targets)})
    assert "| Batch x sequence or batch |" in render_markdown(mixed)


def test_a_hostile_axis_stays_text() -> None:
    report = report_at(("<b>|`x`",), (8,))
    assert "<b>" not in render_markdown(report)
    assert "<b>" not in render_html(report)
