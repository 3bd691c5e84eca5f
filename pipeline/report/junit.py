"""`junit.xml`: what CI servers show as tests. One suite a target, one case a gate.

The form is that of Jenkins' `junit-10.xsd`, which GitLab, Azure, CircleCI and pytest readers take
as well. It knows `properties` on a suite only, so what a gate measured is a property of the target's
suite, named as its case, with `.limit`, `.node` and `.layer` beside it; the case repeats them in its
`system-out`. Which stage a failed target comes down to stands in the properties named `finding`.
"""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from pipeline.report.printable import printable
from pipeline.report.summary import failed_nodes, headline, is_build_breaking, qualities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import NodeReport, Report

STAGES_SUITE = "stages"
"""The suite of the plan's nodes; a failed stage is an error there."""


def render_junit(report: Report) -> str:
    """The report as JUnit XML: a failure for each gate that breaks the build, with its reason.

    A gate that was not run is skipped when the recipe allows that, and a failure when not. A
    verdict that no case explains becomes an error of its own: the file never looks better than
    the report.
    """
    import junitparser

    shown = printable(report)
    names = dict.fromkeys([target.name for target in shown.targets])
    names |= dict.fromkeys(gate.target for gate in shown.gates)
    document = junitparser.JUnitXml(f"convert {shown.name}")
    for name in names:
        gates = [gate for gate in shown.gates if gate.target == name]
        document.add_testsuite(_target_suite(shown, name, gates))
    document.add_testsuite(_stages_suite(shown))
    document.update_statistics()
    root: ET.Element = document._elem  # noqa: SLF001 - junitparser has no public way to its tree
    root.attrib.pop("skipped", None)  # the schema has it on suites only
    text = io.BytesIO()
    ET.indent(root)
    ET.ElementTree(root).write(text, encoding="utf-8", xml_declaration=True)
    return text.getvalue().decode() + "\n"


def _suite(report: Report, name: str, cases: Iterable[Any]) -> Any:
    import junitparser

    suite = junitparser.TestSuite(name)
    suite.timestamp = report.created_at
    suite.add_property("verdict", report.verdict)
    suite.add_property("version", report.version)
    for case in cases:
        suite.add_testcase(case)
    return suite


def _target_suite(report: Report, name: str, gates: list[GateResult]) -> Any:
    suite = _suite(report, name, (_gate_case(gate) for gate in gates))
    for target in report.targets:
        if target.name == name:
            suite.add_property("runtime", target.runtime)
            suite.add_property("precision", target.precision)
            size = sum(file.size_bytes for file in target.files)
            suite.add_property("size_bytes", str(size))
    for row in qualities(report):
        if row.target == name:
            prefix = (
                f"{row.component}.{row.quality.metric}" if row.component else row.quality.metric
            )
            for key in ("score", "reference_score", "drop", "gained", "lost", "answers"):
                suite.add_property(f"quality.{prefix}.{key}", repr(getattr(row.quality, key)))
    for key, value in _accusations(report, name):
        suite.add_property(key, value)
    for gate in gates:
        for key, value in _numbers(gate):
            suite.add_property(f"{gate.gate}.{gate.metric}{key}", value)
    return suite


def _accusations(report: Report, name: str) -> Iterator[tuple[str, str]]:
    """Properties that say what a target's failures come down to."""
    for finding in report.findings:
        if finding.target == name:
            told = {"": finding.sentence, ".node": finding.node, ".stage": finding.stage}
            told[".layer"] = finding.layer
            yield from ((f"finding{key}", value) for key, value in told.items() if value)


def _numbers(gate: GateResult) -> Iterator[tuple[str, str]]:
    """What a gate has to say besides its verdict: (end of the property's name, value)."""
    if gate.measured is not None and math.isfinite(gate.measured):
        yield "", repr(gate.measured)
    if gate.limit:
        yield ".limit", gate.limit
    if gate.node:
        yield ".node", gate.node
    if gate.layer:
        yield ".layer", gate.layer


def _gate_case(gate: GateResult) -> Any:
    import junitparser

    case = junitparser.TestCase(f"{gate.gate}: {gate.metric}", gate.target, 0.0)
    reason = gate.reason or f"{gate.metric} is {gate.measured!r}, the limit is {gate.limit}"
    if is_build_breaking(gate):
        prefix = "not run, and the recipe needs it: " if gate.verdict == "not_run" else ""
        case.result = junitparser.Failure(prefix + reason, gate.gate)
    elif gate.verdict == "not_run":
        case.result = junitparser.Skipped(f"not run, because {reason}", gate.gate)
    proxy = "; measured by proxy" if gate.is_proxy else ""
    accused = f"; node {gate.node}" * bool(gate.node) + f"; layer {gate.layer}" * bool(gate.layer)
    case.system_out = f"measured {gate.measured!r}; limit {gate.limit}{proxy}{accused}"
    return case


def _stages_suite(report: Report) -> Any:
    import junitparser

    cases = [_stage_case(node) for node in report.nodes]
    explained = failed_nodes(report) or any(is_build_breaking(gate) for gate in report.gates)
    if report.verdict != "passed" and not explained:
        case = junitparser.TestCase("verdict", STAGES_SUITE, 0.0)
        reasons = "; ".join(report.reasons) or headline(report)
        case.result = junitparser.Error(reasons, report.verdict)
        cases.append(case)
    suite = _suite(report, STAGES_SUITE, cases)
    for warning in report.warnings:
        suite.add_property("warning", warning)
    return suite


def _stage_case(node: NodeReport) -> Any:
    import junitparser

    # A hit took no time in this run, whatever it took when it was made.
    took = node.wall_time_s if node.state in {"ran", "failed"} else None
    is_known = took is not None and math.isfinite(took)
    case = junitparser.TestCase(
        node.name, STAGES_SUITE, round(took or 0.0, 3) if is_known else 0.0
    )
    if node.state == "failed":
        failure = node.failure
        message = failure.message if failure else "the stage failed"
        error = junitparser.Error(message, (failure.signal if failure else "") or "StageError")
        if failure:
            hint = (f"hint: {failure.hint}",) if failure.hint else ()
            error.text = "\n".join((failure.message, *failure.last_lines, *hint))
        case.result = error
    elif node.state == "skipped":
        case.result = junitparser.Skipped("a stage that it needs failed", "skipped")
    return case
