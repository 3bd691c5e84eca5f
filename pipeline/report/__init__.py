"""The report of one conversion: one typed record, and its forms for people and for machines.

Everything is rendered from `Report` and from nothing else. Jinja2 and junitparser are imported by
the renderer that needs them, when it is called.
"""

from __future__ import annotations

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
