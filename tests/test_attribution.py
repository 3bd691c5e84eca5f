"""Graphs that cannot be run at all are findings too, whatever else is wrong behind them."""

from __future__ import annotations

import pytest

from pipeline.attribution import findings, worth_diagnosing
from pipeline.parity.types import GateResult
from pipeline.report.schema import CheckEntry, StageParity, TargetReport
from pipeline.report.verdicts import unexplained
from tests.report.example import example_report, parity


def _link(stage: str, failure: str = "") -> StageParity:
    return StageParity(node=stage, stage=stage, component="model", parity=None, failure=failure)


def _target(*links: StageParity) -> TargetReport:
    return TargetReport(
        name="cpu",
        runtime="onnxruntime",
        precision="fp32",
        files=(),
        parity=links,
        proxy="",
        not_run_reason="",
        benchmark=None,
        engines=(),
    )


def _gate(node: str) -> GateResult:
    return GateResult(
        gate="stages",
        target="cpu",
        metric=f"{node}.logits.noise",
        measured=1.0,
        limit="<= 0.1",
        verdict="failed",
        reason="far away",
        is_allowed=False,
        node=node,
    )


def test_the_first_graph_that_cannot_be_run_is_accused() -> None:
    target = _target(_link("export"), _link("simplify", "no such size"), _link("fuse", "nor here"))
    (finding,) = findings([target], [_gate("fuse")], {})
    assert finding.stage == "simplify"
    assert finding.sentence == (
        "the fault is made by `simplify`: its graph cannot be run: no such size"
    )


def test_a_gate_that_fails_before_it_is_accused_instead() -> None:
    target = _target(_link("export"), _link("simplify", "no such size"))
    (finding,) = findings([target], [_gate("export")], {})
    assert finding.stage == "export"


def test_without_gates_and_failures_there_is_no_finding() -> None:
    assert findings([_target(_link("export"), _link("fuse"))], [], {}) == ()


def _failed(gate: str, node: str, metric: str = "fuse.some") -> GateResult:
    return _gate(node).model_copy(update={"gate": gate, "metric": metric})


@pytest.mark.parametrize("gate", ["speed", "generation_speed", "openvino_serving"])
def test_a_gate_on_speed_accuses_no_graph(gate: str) -> None:
    target = _target(_link("export"), _link("fuse"))
    slow = _failed(gate, "" if gate == "speed" else "fuse")
    assert findings([target], [slow], {}) == ()
    # What is wrong besides is told as if it were fast.
    assert findings([target], [slow, _gate("fuse")], {}) == findings([target], [_gate("fuse")], {})


@pytest.mark.parametrize(
    ("gates", "names"),
    [
        ([_failed("companions", "export")], set()),
        ([_failed("assignment", "fuse")], set()),
        (
            [_failed("companions", "export"), _failed("invariance", "export", "export.row")],
            {"cpu"},
        ),
        ([_failed("assignment", "fuse"), _failed("generation_speed", "export")], set()),
        ([_failed("stages", "fuse"), _failed("generation_speed", "fuse", "fuse.ttft")], {"cpu"}),
    ],
)
def test_layers_are_only_asked_about_numbers(gates: list[GateResult], names: set[str]) -> None:
    target = _target(_link("export"), _link("fuse"))
    report = example_report().model_copy(
        update={"gates": tuple(gates), "findings": findings([target], gates, {})}
    )
    assert worth_diagnosing(report) == names
    told = {gate.gate for gate in unexplained(report)}
    assert told == {gate.gate for gate in gates} & {"generation_speed"}


def test_a_figure_that_was_not_computed_accuses_no_graph() -> None:
    link = _link("fuse").model_copy(update={"parity": parity(0.01)})
    low = _gate("").model_copy(update={"gate": "quality", "metric": "accuracy.score"})
    assert len(findings([_target(link)], [low], {})) == 1
    lacking = low.model_copy(update={"measured": None})
    assert findings([_target(link)], [lacking], {}) == ()


def test_stages_that_a_gate_did_not_look_at_may_be_at_fault_too() -> None:
    """The check of generation reads the first graph and the delivered one."""
    links = [_link(stage) for stage in ("export", "fuse", "quantize_weights", "pack_weights")]
    checks = tuple(
        CheckEntry(check="generation", node="c", of=stage, stage=stage, component="model")
        for stage in ("export", "pack_weights")
    )
    target = _target(*links).model_copy(update={"checks": checks})
    (finding,) = findings([target], [_failed("generation", "pack_weights")], {})
    assert finding.stage == "pack_weights"
    assert finding.sentence.startswith(
        "the fault is made by `pack_weights`, or before it by `fuse` or `quantize_weights`, "
        "whose graphs that gate does not look at; found by the gate `generation`"
    )
    (first,) = findings([target], [_failed("generation", "export")], {})
    assert first.sentence.startswith("the fault is made by `export`; found by")
    (own,) = findings([target], [_gate("pack_weights")], {})
    assert own.sentence.startswith("the fault is made by `pack_weights`; found by")
