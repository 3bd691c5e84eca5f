"""Verdicts of targets, and which stage is blamed."""

from __future__ import annotations

import pytest

from pipeline.parity.types import SENSELESS, GateResult
from pipeline.report.dag import MAX_NODES, picture
from pipeline.report.schema import Report
from pipeline.report.summary import blame, headline, node_names, stage_errors, summarise
from tests.report.example import example_report


def verdicts(report: Report) -> dict[str, str]:
    return {row.target.name: row.verdict for row in summarise(report)}


def test_each_target_is_judged_by_its_own_gates_and_stages() -> None:
    assert verdicts(example_report("passed"))["rtx-fp16"] == "partly"
    assert verdicts(example_report("failed")) == {
        "cpu-fp32": "passed",
        "cpu-int8": "failed",
        "rtx-fp16": "partly",
    }
    assert verdicts(example_report("error"))["rtx-fp16"] == "error"
    assert verdicts(example_report("error"))["cpu-fp32"] == "passed"


def test_a_failed_stage_that_all_share_is_an_error_of_every_target() -> None:
    report = example_report()
    nodes = tuple(
        node.model_copy(update={"state": "failed"}) if node.name == "export" else node
        for node in report.nodes
    )
    broken = report.model_copy(update={"nodes": nodes, "verdict": "error"})
    assert set(verdicts(broken).values()) == {"error"}


def test_a_target_whose_name_begins_like_another_keeps_its_own_nodes() -> None:
    report = example_report()
    short = report.targets[2].model_copy(update={"name": "rtx", "parity": (), "engines": ()})
    both = report.model_copy(update={"targets": (short, report.targets[2])})
    assert "engine@rtx-fp16-sm89" not in node_names(both, short)
    assert "engine@rtx-fp16-sm89" in node_names(both, report.targets[2])


def test_a_list_of_nodes_in_the_report_is_taken_as_it_is() -> None:
    report = example_report()
    target = report.targets[0].model_copy(update={"nodes": ("engine@rtx-fp16-sm89",)})
    assert node_names(report, target) == {"engine@rtx-fp16-sm89"}


def test_added_errors_sum_up_to_the_last_one() -> None:
    target = example_report().targets[1]
    errors = [e for e in stage_errors(target) if e.output.name == "last_hidden_state"]
    first = errors[0].output.metrics.relative_l2
    last = errors[-1].output.metrics.relative_l2
    assert errors[0].added_relative_l2 is None
    assert first is not None
    assert first + sum(e.added_relative_l2 or 0.0 for e in errors) == pytest.approx(last)


def test_the_stage_that_brought_the_error_is_blamed_and_no_other_gate_blames() -> None:
    report = example_report("failed")
    gates = {(gate.target, gate.gate): gate for gate in report.gates}
    assert blame(report, gates["cpu-int8", "parity"]).startswith("quantize_dynamic@cpu-int8 ")
    assert blame(report, gates["cpu-int8", "speed"]) == ""


def test_the_headline_counts_what_failed_and_what_was_not_run() -> None:
    assert headline(example_report("error")).startswith("1 stage failed; 2 gates were not run")
    none = example_report().model_copy(update={"gates": ()})
    assert headline(none) == "no gate was judged"
    unexplained = none.model_copy(update={"verdict": "failed"})
    assert headline(unexplained) == "the build did not pass"


def test_the_picture_has_every_node_and_leaves_out_implied_arrows() -> None:
    nodes = example_report().nodes
    drawn = picture(nodes)
    assert drawn is not None
    assert sorted(box.name for box in drawn.boxes) == sorted(node.name for node in nodes)
    inputs = sum(len(node.inputs) for node in nodes)
    # Each of the five comparisons reads the samples, which its reference has read already.
    assert len(drawn.arrows) == inputs - 5


def test_a_picture_of_a_cycle_or_of_too_much_does_not_hang() -> None:
    nodes = example_report().nodes
    turned = (
        nodes[0].model_copy(update={"name": "a", "inputs": ("b",)}),
        nodes[0].model_copy(update={"name": "b", "inputs": ("a", "missing")}),
    )
    assert picture(turned) is not None
    assert picture(nodes * MAX_NODES) is None
    assert picture(()) is None


def test_what_makes_no_sense_for_a_graph_is_not_called_the_recipes_choice() -> None:
    senseless = GateResult(
        gate="generation",
        target="cpu",
        metric="adopt.logits.chunked.itself",
        measured=None,
        limit=SENSELESS,
        verdict="not_run",
        reason="the graph keeps no keys and values",
        is_allowed=True,
    )
    report = example_report("passed")
    gates = (*(gate for gate in report.gates if gate.verdict == "passed"), senseless)
    sentence = headline(
        report.model_copy(update={"gates": gates, "nodes": (), "verdict": "passed"})
    )
    assert sentence.endswith("1 gate makes no sense for this graph")
    assert "recipe" not in sentence
