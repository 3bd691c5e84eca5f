"""Noise of stages and probes as the report shows it: the same numbers as the gates judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.parity.stage_gates import JudgedGraph, judge_stage
from pipeline.report.noise import limit_of, probe_table, stage_noises
from pipeline.report.noise_specs import noise_specs
from pipeline.report.schema import Report
from tests.report.example import OUTPUTS, example_report
from tests.report.faults import ERRORS, FAULTY, FLOORS, fault_report


def judged_anew(report: Report) -> Report:
    """The report with gates of stages as the gate itself makes them."""
    floors = {floor.output: floor for floor in report.noise_floors}
    gates = [
        gate
        for target in report.targets
        for link in target.parity
        if link.parity is not None and link.arithmetic is not None
        for gate in judge_stage(
            JudgedGraph(
                target=target.name,
                component=link.component,
                stage=link.stage,
                node=link.node,
                arithmetic=link.arithmetic,
                is_proxy=False,
            ),
            link.parity,
            floors,
            None,
        )
    ]
    return report.model_copy(update={"gates": tuple(gates)})


def test_what_is_shown_is_what_the_gates_judged() -> None:
    report = judged_anew(fault_report())
    seen = set()
    for target, rows in zip(report.targets, stage_noises(report), strict=True):
        assert len(rows) == len(OUTPUTS) * len(target.parity)
        for row in rows:
            assert row.gate is not None
            gate = report.gates[row.gate]
            assert (gate.target, gate.node) == (target.name, row.node)
            assert row.noise == pytest.approx(gate.measured)
            # The ceiling of 8 bits is for data; all other limits are for probes too.
            is_probe = row.worst == "probe 3 (token types)"
            assert is_probe is (row.arithmetic != "quantized")
            assert row.holds is gate.is_allowed is (row.node != FAULTY)
            assert row.floor == FLOORS[row.output]
            assert row.share is not None
            assert (row.share <= 1) is row.holds
            seen.add(row.gate)
    assert seen == set(range(len(report.gates)))


def test_a_sample_that_gives_no_number_is_named() -> None:
    report = fault_report()
    target = report.targets[0]
    link = target.parity[0]
    assert link.parity is not None
    output = link.parity.outputs[0]
    broken = output.samples[5].metrics.model_copy(update={"rmse": None, "non_finite": 3})
    samples = (*output.samples[:5], output.samples[5].model_copy(update={"metrics": broken}))
    parity = link.parity.model_copy(
        update={"outputs": (output.model_copy(update={"samples": samples}),)}
    )
    changed = target.model_copy(update={"parity": (link.model_copy(update={"parity": parity}),)})
    ((row,), *_) = stage_noises(report.model_copy(update={"targets": (changed,)}))
    assert (row.noise, row.worst, row.sample) == (None, "sample 5", 5)


def test_a_report_from_before_noise_was_recorded_has_none() -> None:
    report = example_report()
    assert stage_noises(report) == ((),) * len(report.targets)
    assert probe_table(report) is None
    assert noise_specs([t.name for t in report.targets], stage_noises(report)) == {}


def test_probes_are_told_by_kind_and_once_for_a_graph_that_targets_share() -> None:
    table = probe_table(fault_report())
    assert table is not None
    assert table.nodes == tuple(ERRORS)
    rows = {row.kind: row.cells for row in table.rows}
    assert set(rows) == {"rare tokens", "longest", "left padding", "token types", "all masked"}
    shares = {
        node: cell.share
        for node, cell in zip(table.nodes, rows["token types"], strict=True)
        if cell
    }
    assert [node for node, share in shares.items() if share and share > 1] == [FAULTY]
    for cell in rows["all masked"]:
        assert cell is not None
        assert cell.noise is None


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        *(("<= 1.2e-05", 1.2e-5), ("<= 0", 0.0), (">= 0.9", None), ("only measured", None)),
        *(("", None), ("<= nan", None), ("<= inf", None)),
    ],
)
def test_a_limit_from_above_is_read_from_its_words(limit: str, value: float | None) -> None:
    gate = fault_report().gates[0].model_copy(update={"limit": limit})
    assert limit_of(gate) == value


def test_the_chart_has_every_stage_with_its_floor_and_limit() -> None:
    report = fault_report()
    specs = noise_specs([target.name for target in report.targets], stage_noises(report))
    assert set(specs) == {"cpu-fp32", "cpu-int8", "rtx-fp16"}
    domains = {
        str(spec["layer"][0]["encoding"]["x"]["scale"]["domain"]) for spec in specs.values()
    }
    assert len(domains) == 1, "targets are compared on one axis"
    values = specs["cpu-int8"]["data"]["values"]
    assert [row["node"] for row in values if row["is"] == "fails"] == [FAULTY] * 2
    assert all(row["floor"] < row["limit"] for row in values)
    assert all(math.isfinite(row["x"]) for row in values)


def test_of_many_outputs_those_that_fail_and_the_nearest_to_their_limits_are_drawn() -> None:
    report = fault_report()
    (table, *_) = stage_noises(report)
    row = next(row for row in table if row.limit is not None)
    names = ["logits", *(f"present.{n}.key" for n in range(40))]
    rows = [
        replace(row, output=name, limit=1.0, noise=1e-6 * (n + 1), holds=name != "present.3.key")
        for n, name in enumerate(names)
    ]
    spec = noise_specs(["cpu"], [rows])["cpu"]
    drawn = {value["output"] for value in spec["data"]["values"]}
    assert drawn == {"present.3.key", *names[-5:]}
    assert spec["title"]["text"] == "6 of 41 outputs, the nearest to their limits"
    assert "title" not in noise_specs(["cpu"], [rows[:6]])["cpu"]
