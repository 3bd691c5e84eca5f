"""Graphs that cannot be run at all are findings too, whatever else is wrong behind them."""

from __future__ import annotations

from pipeline.attribution import findings
from pipeline.parity.types import GateResult
from pipeline.report.schema import StageParity, TargetReport


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
