"""Calls on a GPU, and torch on it: both reports show what was measured, and nothing where nothing was."""

from __future__ import annotations

import pytest

from pipeline.bench.types import DevicePart, DeviceTimes
from pipeline.report import render_html, render_markdown
from pipeline.report.schema import Report, TorchRun
from tests.report.example import example_report, parity


def _part(ms: float) -> DevicePart:
    return DevicePart(
        median_ms=ms, p90_ms=ms, p95_ms=ms, p99_ms=ms, coefficient_of_variation=0.0123
    )


def _with_device(report: Report) -> Report:
    times = DeviceTimes(
        h2d=_part(0.111), compute=_part(0.222), d2h=_part(0.333), enqueue=_part(0.5)
    )
    first, *others = report.targets
    assert first.benchmark is not None
    shapes = [shape.model_copy(update={"device": times}) for shape in first.benchmark.shapes]
    timed = first.benchmark.model_copy(update={"shapes": tuple(shapes)})
    return report.model_copy(
        update={"targets": (first.model_copy(update={"benchmark": timed}), *others)}
    )


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_the_parts_of_calls_are_in_both_reports(render: object) -> None:
    assert callable(render)
    report = example_report()
    assert "copies to the GPU" not in render(report)
    text = render(_with_device(report))
    assert "Calls on the GPU" in text
    for figure in ("copies to the GPU", "0.111", "0.222", "0.333", "enqueue", "1.23"):
        assert figure in text


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_torch_on_the_gpu_has_rows_and_no_gate(render: object) -> None:
    assert callable(render)
    report = example_report()
    assert "this GPU" not in render(report)
    assert "torch_runs" not in report.model_dump()
    timed = next(target.benchmark for target in report.targets if target.benchmark)
    assert timed is not None
    runs = (
        TorchRun(variant="fp16", component="model", parity=parity(0.00271), benchmark=timed),
        TorchRun(variant="bf16-compiled", component="model", parity=None, benchmark=None),
    )
    text = render(report.model_copy(update={"torch_runs": runs}))
    for words in ("fp16", "0.00271", "bf16-compiled", "no result"):
        assert words in text
    again = Report.model_validate_json(
        report.model_copy(update={"torch_runs": runs}).model_dump_json()
    )
    assert again.torch_runs == runs
