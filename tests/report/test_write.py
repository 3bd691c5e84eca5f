"""The report on disk, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.report import load_report, write_report
from tests.report.example import example_report


def test_all_five_forms_are_written(tmp_path: Path) -> None:
    report = example_report("failed")
    paths = write_report(report, tmp_path)
    assert [path.name for path in paths] == [
        "report.json",
        "report.md",
        "junit.xml",
        "report.sarif",
        "report.html",
    ]
    assert all(path.read_bytes().strip() for path in paths)
    assert load_report(paths[0]) == report
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_a_directory_that_is_not_there_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        write_report(example_report(), tmp_path / "missing")
    assert caught.value.where.endswith("report.json")


def test_importing_the_report_loads_no_template_engine_and_nothing_heavy() -> None:
    heavy = ("jinja2", "junitparser", "numpy", "torch", "onnx", "onnxruntime", "rich")
    code = f"import pipeline.report, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
