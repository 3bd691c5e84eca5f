"""What checks measured, read from facts that may hold anything."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.report import render_html
from pipeline.report.checks import MAX_TABLE_ROWS, case_table, shown_checks
from pipeline.report.gate_groups import gate_groups
from pipeline.report.noise_specs import layer_spec
from pipeline.report.schema import Report
from tests.report.example import OUTPUTS, example_report
from tests.report.faults import CASES, FAULTY, LAYER, fault_report


def with_facts(check: str, facts: dict[str, Any]) -> Report:
    report = fault_report()
    names = {e.node for target in report.targets for e in target.checks if e.check == check}
    nodes = tuple(
        node.model_copy(update={"facts": facts}) if node.name in names else node
        for node in report.nodes
    )
    return report.model_copy(update={"nodes": nodes})


def test_a_graph_that_targets_share_is_there_once() -> None:
    checks = shown_checks(fault_report())
    found = {(check.name, check.of): check.targets for check in checks}
    assert len(found) == len(checks)
    assert found["invariance", "export"] == ("cpu-fp32", "cpu-int8", "rtx-fp16")
    assert found["layers", FAULTY] == ("cpu-fp32", "cpu-int8")
    assert [check.place for check in checks] == list(range(1, len(checks) + 1))


def test_a_check_that_fails_comes_first() -> None:
    report = fault_report()
    gates = tuple(
        gate.model_copy(update={"verdict": "failed", "is_allowed": False})
        if gate.gate == "invariance" and gate.node == "cast@rtx-fp16"
        else gate
        for gate in report.gates
    )
    first, *rest = shown_checks(report.model_copy(update={"gates": gates}))
    assert (first.name, first.of, first.holds) == ("invariance", "cast@rtx-fp16", False)
    assert all(check.holds for check in rest)


def test_cases_are_rows_and_graphs_are_columns() -> None:
    table = case_table(fault_report())
    assert table is not None
    assert [node for node, _ in table.nodes] == [
        *("export", FAULTY, "quantize_dynamic@cpu-int8", "cast@rtx-fp16"),
    ]
    assert [(case, output) for case, output, _ in table.rows] == [
        (case, output) for output in OUTPUTS for case in CASES
    ]
    for case, _, cells in table.rows:
        for cell in cells:
            assert cell is not None
            assert cell.noise == CASES[case]
            assert cell.gate is not None
            assert cell.holds


def test_the_walk_through_the_layers_names_the_first_that_departs_and_the_worst() -> None:
    (walk,) = (check.walk for check in shown_checks(fault_report()) if check.walk)
    assert walk.first is not None
    assert walk.first.title == LAYER
    assert (walk.against, walk.samples) == ("simplify", 8)
    assert [layer.rank for layer in walk.worst] == [1, 2]
    spec = layer_spec(walk)
    assert spec is not None
    assert len(spec["data"]["values"]) == len(walk.layers) == 24


def test_a_value_without_a_number_has_a_place_and_no_point() -> None:
    rows = [
        {"name": "a", "noise": None, "added": None},
        {"name": "b", "noise": 0.0, "added": 1e-3, "layer": "x.y"},
        {"name": "c", "noise": 2e-3},
    ]
    facts = {"layers": rows, "worst": ["b"], "first": None}
    (walk,) = (check.walk for check in shown_checks(with_facts("layers", facts)) if check.walk)
    assert walk.first is None
    assert [layer.title for layer in walk.layers] == ["a", "x.y", "c"]
    spec = layer_spec(walk)
    assert spec is not None
    assert [row["noise"] is None for row in spec["data"]["values"]] == [True, False, False]
    nothing = {"layers": rows[:1], "worst": [], "first": None}
    (walk,) = (check.walk for check in shown_checks(with_facts("layers", nothing)) if check.walk)
    assert layer_spec(walk) is None


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"layers": None, "cases": None},
        {"layers": "text", "cases": 3},
        {"layers": [1, "a", None], "cases": [[]]},
        {"layers": [{}], "worst": 3, "first": ["x"], "cases": [{}]},
        {"layers": [{"name": {"a": 1}, "noise": "much"}], "cases": [{"case": [], "noise": "x"}]},
    ],
    ids=range(6),
)
@pytest.mark.parametrize("check", ["layers", "invariance", "headroom"])
def test_facts_of_any_shape_are_read(check: str, facts: dict[str, Any]) -> None:
    report = with_facts(check, facts)
    assert len(shown_checks(report)) == len(shown_checks(fault_report()))
    case_table(report)


def test_lists_of_records_become_tables_and_the_rest_rows() -> None:
    records = [{"layer": f"layer.{i}", "loss_db": i / 7, "axes": [0, 1]} for i in range(99)]
    (check,) = (
        check
        for check in shown_checks(with_facts("headroom", {"worst": records, "summary": {"n": 3}}))
        if check.name == "headroom"
    )
    (table,) = check.tables
    assert (table.title, table.total, len(table.rows)) == ("worst", 99, MAX_TABLE_ROWS)
    assert table.columns == ("layer", "loss_db", "axes")
    assert table.rows[1] == ("layer.1", "0.142857", "0, 1")
    assert check.rows == (("summary › n", "3"),)  # noqa: RUF001


def test_a_check_whose_node_is_not_in_the_report_is_told_as_skipped() -> None:
    report = fault_report().model_copy(update={"nodes": ()})
    assert {check.state for check in shown_checks(report)} == {"skipped"}


def test_every_gate_is_in_one_group_and_the_accused_come_first() -> None:
    report = fault_report()
    slow = next(gate for gate in report.gates if gate.gate == "speed").model_copy(
        update={"verdict": "failed", "is_allowed": False}
    )
    parity = next(gate for gate in report.gates if gate.gate == "parity").model_copy(
        update={"verdict": "failed", "is_allowed": False}
    )
    report = report.model_copy(update={"gates": (slow, parity, *report.gates)})
    groups = gate_groups(report)
    shown = [
        each.place
        for gates in (
            *(groups.broken, groups.not_run),
            *(cause.gates for cause in groups.behind),
            *(held.gates for held in groups.held),
        )
        for each in gates
    ]
    assert sorted(shown) == list(range(len(report.gates)))
    assert [each.gate.node for each in groups.broken] == [*[FAULTY] * 4, ""]
    assert groups.broken[-1].gate.gate == "speed"
    (behind,) = groups.behind
    assert [each.gate.gate for each in behind.gates] == ["parity"]
    assert [held.kind for held in groups.held][:2] == ["stages", "parity"]
    stages = groups.held[0]
    assert stages.limited == len(stages.gates)
    assert stages.closest is not None
    assert 0.9 < stages.closest < 1


def test_a_report_without_findings_shows_every_broken_gate() -> None:
    report = example_report("failed")
    broken = [gate for gate in report.gates if not gate.is_allowed]
    assert [each.gate for each in gate_groups(report).broken] == broken


def test_variants_of_a_case_are_taken_together_and_what_cannot_be_run_is_said() -> None:
    def case(name: str, noises: list[float | None], problem: str = "") -> dict[str, Any]:
        return {
            "case": name,
            "variant": "x",
            "output": "o",
            "noises": noises,
            "problem": problem,
        } | {"samples": list(range(len(noises)))}

    facts = {
        "cases": [
            case("batch", [1e-7, 3e-7]),
            case("batch", [2e-7]),
            case("padding", [1e-7, None]),
            case("largest", [], "only batch 1 works"),
        ]
    }
    table = case_table(with_facts("invariance", facts))
    assert table is not None
    cells = {name: cell for name, _, (cell, *_) in table.rows if cell}
    assert (cells["batch"].noise, cells["batch"].sample) == (3e-7, "1")
    assert cells["padding"].noise == math.inf
    assert (cells["largest"].noise, cells["largest"].problem) == (None, "only batch 1 works")
    assert "cannot be run" in render_html(with_facts("invariance", facts))


def test_groups_of_measures_become_one_table_and_their_records_one_each() -> None:
    measures = {
        kind: {
            "count": 2,
            "total": 0.5,
            "worst": [{"layer": "a.b", "value": 0.5, "detail": "why"}],
        }
        for kind in ("weights", "scales")
    } | {"biases": {"count": 0, "total": 0.0, "worst": []}}
    facts = {"measures": measures, "quantized": 36, "noise": [{"output": "o", "noise": 1e-7}]}
    check = next(c for c in shown_checks(with_facts("headroom", facts)) if c.name == "headroom")
    assert {table.title for table in check.tables} == {
        *("measures › weights › worst", "measures › scales › worst", "measures", "noise"),  # noqa: RUF001
    }
    assert ("quantized", "36") in check.rows
    group = next(table for table in check.tables if table.title == "measures")
    assert group.rows == (("weights", "2", "0.5"), ("scales", "2", "0.5"), ("biases", "0", "0"))
