"""The report of one conversion: one typed record, and its forms for people and for machines.

Everything is rendered from `Report` and from nothing else. A renderer is imported when it is first
asked for (PEP 562): a run that finds everything up to date reads a report and prints a summary, and
must not pay for templates and charts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.report.html import render_html
    from pipeline.report.junit import render_junit
    from pipeline.report.markdown import render_markdown
    from pipeline.report.schema import Report
    from pipeline.report.serialize import load_report, report_json
    from pipeline.report.terminal import render_terminal_summary
    from pipeline.report.write import write_report

__all__ = [
    "Report",
    "load_report",
    "render_html",
    "render_junit",
    "render_markdown",
    "render_terminal_summary",
    "report_json",
    "write_report",
]

_HOMES = {
    "Report": "schema",
    "load_report": "serialize",
    "render_html": "html",
    "render_junit": "junit",
    "render_markdown": "markdown",
    "render_terminal_summary": "terminal",
    "report_json": "serialize",
    "write_report": "write",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
