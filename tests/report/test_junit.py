"""`junit.xml` follows Jenkins' junit-10.xsd, and never looks better than the report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import get_args

import pytest
from lxml import etree

from pipeline.report import render_junit
from pipeline.report.schema import Report
from tests.report.example import WARNINGS, Variant, example_report, image_report
from tests.report.faults import fault_report
from tests.report.hostile import ALL, HUGE, hostile_report

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "schemas" / "junit-10.xsd"))


def check_schema(text: str) -> None:
    SCHEMA.assertValid(etree.fromstring(text.encode()))


def parsed(report: Report) -> ET.Element:
    text = render_junit(report)
    check_schema(text)
    return ET.fromstring(text)


def cases(root: ET.Element, kind: str) -> list[tuple[str | None, str | None]]:
    return [
        (case.get("classname"), case.get("name"))
        for case in root.iter("testcase")
        if case.find(kind) is not None
    ]


@pytest.mark.parametrize("variant", get_args(Variant))
def test_there_is_one_case_for_each_gate_of_each_target(variant: Variant) -> None:
    report = example_report(variant)
    found = [
        (case.get("classname"), case.get("name"))
        for case in parsed(report).iter("testcase")
        if case.get("classname") != "stages"
    ]
    assert sorted(found) == sorted((g.target, f"{g.gate}: {g.metric}") for g in report.gates)


def test_a_build_that_passed_has_no_failure_and_skips_what_may_stay_unchecked() -> None:
    root = parsed(example_report("passed"))
    assert not cases(root, "failure")
    assert not cases(root, "error")
    assert len(cases(root, "skipped")) == 2


def test_a_broken_gate_is_a_failure_with_its_reason_and_number() -> None:
    root = parsed(example_report("failed"))
    assert cases(root, "failure") == [("cpu-int8", "parity: last_hidden_state.cosine_similarity")]
    failure = next(root.iter("failure"))
    assert "the limit is >= 0.99" in failure.get("message", "")
    suite = next(suite for suite in root if suite.get("name") == "cpu-int8")
    numbers = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert numbers["parity.last_hidden_state.cosine_similarity"] == repr(0.9704754999999998)
    assert root.get("failures") == suite.get("failures") == "1"


def test_a_gate_that_was_not_run_and_may_not_be_skipped_is_a_failure() -> None:
    report = example_report()
    gates = tuple(
        gate.model_copy(update={"is_allowed": gate.verdict != "not_run"}) for gate in report.gates
    )
    root = parsed(report.model_copy(update={"gates": gates, "verdict": "failed"}))
    assert len(cases(root, "failure")) == 2
    assert not cases(root, "skipped")


def test_a_failed_stage_is_an_error_with_signal_and_last_lines() -> None:
    root = parsed(example_report("error"))
    assert cases(root, "error") == [("stages", "engine@rtx-fp16-sm120")]
    error = next(root.iter("error"))
    assert error.get("type") == "SIGKILL"
    assert "Building for compute capability 12.0" in (error.text or "")


@pytest.mark.parametrize("verdict", ["failed", "error"])
def test_a_verdict_that_no_case_explains_is_an_error_of_its_own(verdict: str) -> None:
    report = example_report().model_copy(
        update={"verdict": verdict, "reasons": ("the plan is empty",)}
    )
    root = parsed(report)
    assert cases(root, "error") == [("stages", "verdict")]
    assert next(root.iter("error")).get("message") == "the plan is empty"


@pytest.mark.parametrize("text", [*ALL, HUGE], ids=lambda text: ascii(text)[:30])
def test_hostile_text_never_breaks_the_xml(text: str) -> None:
    rendered = render_junit(hostile_report(text))
    check_schema(rendered)
    assert "<!" not in rendered
    assert "\x1b" not in rendered
    assert len(rendered) < 200_000


def test_quality_and_warnings_are_properties() -> None:
    root = ET.fromstring(render_junit(image_report()))
    found = {
        (suite.get("name"), entry.get("name")): entry.get("value")
        for suite in root.iter("testsuite")
        for entry in suite.iter("property")
    }
    assert found["cpu-int8", "quality.accuracy.score"] == "0.78"
    assert found["cpu-int8", "quality.accuracy.lost"] == "6"
    warnings = [e.get("value") for e in root.iter("property") if e.get("name") == "warning"]
    assert warnings == list(WARNINGS)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('<testcase name="', '<testcase title="'),
        ("<properties>", "<numbers/><properties>"),
        (' time="', ' time="soon'),
        ("</testsuites>", "<testcase/></testsuites>"),
    ],
)
def test_the_schema_refuses_what_is_wrong(right: str, wrong: str) -> None:
    text = render_junit(example_report("failed"))
    assert right in text
    with pytest.raises(etree.DocumentInvalid):
        check_schema(text.replace(right, wrong, 1))


def test_numbers_limits_and_what_is_accused_are_properties_of_the_suite() -> None:
    report = fault_report()
    gate = next(gate for gate in report.gates if gate.layer)
    (suite,) = (suite for suite in parsed(report) if suite.get("name") == gate.target)
    found = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
    name = f"{gate.gate}.{gate.metric}"
    assert found[name] == repr(gate.measured)
    assert found[f"{name}.limit"] == gate.limit
    assert found[f"{name}.node"] == gate.node
    assert found[f"{name}.layer"] == gate.layer
    (finding,) = (finding for finding in report.findings if finding.target == gate.target)
    assert found["finding"] == finding.sentence
    assert (found["finding.stage"], found["finding.layer"]) == (finding.stage, finding.layer)
    case = next(case for case in suite.iter("testcase") if gate.metric in case.get("name", ""))
    assert f"layer {gate.layer}" in (case.findtext("system-out") or "")
