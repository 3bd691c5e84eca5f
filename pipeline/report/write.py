"""Writes the report in all its forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.report.html import render_html
from pipeline.report.junit import render_junit
from pipeline.report.markdown import render_markdown
from pipeline.report.sarif import render_sarif
from pipeline.report.serialize import report_json

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.report.places import Places
    from pipeline.report.schema import Report


def write_report(
    report: Report, directory: Path, places: Places | None = None
) -> tuple[Path, ...]:
    """Write `report.json`, `report.md`, `junit.xml`, `report.sarif` and `report.html`.

    Args:
        report: The report.
        directory: Where the files go; it must be there.
        places: Where the recipe's keys are written, for `report.sarif`.

    Returns:
        The five paths, in that order.

    Raises:
        StoreError: when a file cannot be written.
    """
    forms = {
        "report.json": report_json(report),
        "report.md": render_markdown(report),
        "junit.xml": render_junit(report),
        "report.sarif": render_sarif(report, places),
        "report.html": render_html(report),
    }
    paths = []
    for name, text in forms.items():
        path = directory / name
        try:
            # Bytes, so that no platform changes the line ends.
            path.write_bytes(text.encode())
        except OSError as error:
            raise StoreError(
                f"the report cannot be written: {error.strerror}", where=str(path)
            ) from error
        paths.append(path)
    return tuple(paths)
