"""A report that is judged again shows what its failures come down to, like one of a build."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.judging import judged
from pipeline.recipe.types import Gates
from pipeline.report import render_html, render_junit, render_markdown, render_terminal_summary
from pipeline.report.github import annotation_lines
from pipeline.report.sarif import render_sarif
from pipeline.report.schema import Report
from tests.report.faults import FAULTY, fault_report


def judged_by(gates: dict[str, Any]) -> Report:
    """The numbers of the faulty report with other limits; without checks, whose facts are made up."""
    report = fault_report()
    targets = tuple(target.model_copy(update={"checks": ()}) for target in report.targets)
    bare = report.model_copy(
        update={
            "targets": targets,
            "gates": (),
            "findings": (),
            "reasons": (),
            "verdict": "passed",
        }
    )
    limits = Gates.model_validate(
        {"parity": {"cosine_similarity": {"min": 0.5}}, "allow_not_run": ("device_parity",)}
        | gates
    )
    return judged(bare, limits, declared={})


def forms(report: Report) -> dict[str, str]:
    return {
        "html": render_html(report),
        "markdown": render_markdown(report),
        "terminal": render_terminal_summary(report),
        "junit": render_junit(report),
        "sarif": render_sarif(report),
        "github": "\n".join(annotation_lines(report)),
    }


def test_findings_of_a_judgement_are_in_every_form() -> None:
    report = judged_by({})
    assert report.verdict == "failed"
    assert [(f.target, f.node) for f in report.findings] == [
        ("cpu-fp32", FAULTY),
        ("cpu-int8", FAULTY),
    ]
    for name, text in forms(report).items():
        assert "the fault is made by" in text.lower(), name
        assert "fuse@" in text, name


@pytest.mark.parametrize("limit", [1e-9, 1.0])
def test_limits_of_a_stage_take_a_finding_away_or_move_it(limit: float) -> None:
    report = judged_by({"stages": {"fuse": {"noise": 1.0}, "export": {"noise": limit}}})
    nodes = {finding.node for finding in report.findings}
    assert nodes == ({"export"} if limit < 1 else set())
    assert report.verdict == ("failed" if limit < 1 else "passed")
    results = json.loads(render_sarif(report))["runs"][0]["results"]
    found = [result for result in results if result["ruleId"] == "finding/stage"]
    assert len(found) == (3 if limit < 1 else 0)
    assert ("finding-1" in render_html(report)) is (limit < 1)
