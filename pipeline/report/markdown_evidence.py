"""What stands in `report.md` for a verdict: gates, noise by stage, probes, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.checks import case_table, shown_checks
from pipeline.report.gate_groups import gate_groups
from pipeline.report.markdown_parts import VERDICT_MARKS, code, escape, table
from pipeline.report.noise import probe_table, stage_noises
from pipeline.report.printable import printable_text
from pipeline.report.summary import VERDICT_WORDS, blame, is_build_breaking
from pipeline.report.writing import writing_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.parity.types import GateResult
    from pipeline.report.checks import CaseCell, ShownCheck
    from pipeline.report.gate_groups import PlacedGate
    from pipeline.report.markdown_parts import Section
    from pipeline.report.noise import ProbeCell
    from pipeline.report.schema import Report

MAX_FACTS = 12
"""Rows of what one check measured; the rest is in report.json."""

MAX_RECORDS = 20
"""Rows of one table of what a check measured; likewise."""


def gate_words(report: Report, gate: GateResult) -> str:
    """One gate that does not hold, in a line."""
    where = f"{gate.target}: {gate.gate.replace('_', ' ')} gate: {gate.metric}"
    if gate.verdict == "not_run":
        return f"{where} was not run, because {gate.reason}; the recipe needs it"
    told = (
        f"is {figures.judged(gate.metric, gate.measured, holds=False)}, the limit is {gate.limit}"
    )
    return "; ".join(filter(None, (f"{where} {told}", blame(report, gate))))


def gate_sections(report: Report) -> Iterator[Section | None]:
    """What fails, then what was not run, then folded what a finding explains and what holds."""
    groups = gate_groups(report)
    yield _gates(report, "Gates", (*groups.broken, *groups.not_run))
    behind = [gate for cause in groups.behind for gate in cause.gates]
    yield _gates(report, "Gates that fail for the same fault", behind, folded=True)
    held = [gate for kind in groups.held for gate in kind.gates]
    yield _gates(report, "Gates that hold", held, folded=True)


def _gates(
    report: Report, title: str, gates: Iterable[PlacedGate], *, folded: bool = False
) -> Section | None:
    columns = ("Verdict", "Target", "Gate", "Metric", "Measured>", "Limit", "Reason")
    return table(title, columns, [_gate_row(report, each.gate) for each in gates], folded=folded)


def _gate_row(report: Report, gate: GateResult) -> tuple[str, ...]:
    holds = not is_build_breaking(gate)
    word = VERDICT_WORDS[gate.verdict]
    if gate.verdict == "not_run":
        word += " (allowed)" if gate.is_allowed else " (not allowed)"
    mark = VERDICT_MARKS["failed" if not holds else gate.verdict]
    accused = f"in {gate.node}" + (f", layer {gate.layer}" if gate.layer else "")
    why = (gate.reason, "" if holds or not gate.node else accused)
    return (
        f"{mark} {word}",
        code(gate.target),
        escape(gate.gate),
        code(gate.metric),
        figures.judged(gate.metric, gate.measured, holds=holds)
        + (" (proxy)" if gate.is_proxy else ""),
        escape(gate.limit),
        escape("; ".join(filter(None, (*why, "" if holds else blame(report, gate))))),
    )


def noise_sections(report: Report) -> Iterator[Section | None]:
    """Noise beside floor and limit, and the probes.

    Args:
        report: As it was recorded: `printable` leaves single samples out.
    """
    tables = stage_noises(report)
    rows = [
        (
            code(printable_text(target.name)),
            code(row.node),
            code(row.output),
            row.arithmetic,
            figures.figure(row.floor, 3),
            figures.figure(row.noise, 3),
            escape(row.worst),
            figures.figure(row.limit, 3),
            figures.share(row.share),
            VERDICT_MARKS["passed" if row.holds else "failed"] if row.gate is not None else "",
        )
        for target, found in zip(report.targets, tables, strict=True)
        for row in found
    ]
    columns = (
        *("Target", "After", "Output", "Computes in", "Floor>", "Noise>", "Of", "Limit>"),
        *("Of the limit>", "Gate"),
    )
    yield table("Noise after each stage", columns, rows, folded=True)
    probes = probe_table(report)
    if probes is not None:
        yield table(
            "Probes: largest noise after each stage",
            ("Kind", *(f"{escape(node)}>" for node in probes.nodes)),
            [(escape(row.kind), *map(_probe, row.cells)) for row in probes.rows],
            folded=True,
        )


def _probe(cell: ProbeCell | None) -> str:
    if cell is None or cell.noise is None:
        return "no figure"
    bad = cell.share is not None and cell.share > 1
    text = figures.figure(cell.noise, 3)
    return f"**{text}** ({figures.share(cell.share)})" if bad else text


def check_sections(report: Report) -> Iterator[Section | None]:
    """What the checks measured; the report as `printable` gives it."""
    cases = case_table(report)
    if cases is not None:
        yield table(
            "Invariance: noise of a graph against itself",
            ("Case", "Output", *(f"{escape(f'{node} ({of})')}>" for node, of in cases.nodes)),
            [
                (escape(case), code(output), *map(_case, cells))
                for case, output, cells in cases.rows
            ],
            folded=True,
        )
    for check in shown_checks(report):
        yield _walk(check)
        for each in check.tables:
            yield table(
                f"{escape(check.name.replace('_', ' ').capitalize())} of {escape(check.of)}: "
                f"{escape(each.title.replace('_', ' '))}",
                [escape(column.replace("_", " ")) for column in each.columns],
                [[escape(cell) for cell in row] for row in each.rows[:MAX_RECORDS]],
                folded=True,
            )
        yield table(
            f"{escape(check.name.replace('_', ' ').capitalize())} of {escape(check.of)}",
            ("Key", "Value"),
            [(escape(key), escape(value)) for key, value in check.rows[:MAX_FACTS]],
            folded=True,
        )


def writing_sections(report: Report) -> Iterator[Section | None]:
    """How fast decoders write, and what the names mean; the report as `printable` gives it."""
    found = writing_of(report)
    if found is None:
        return
    for shown in found.tables:
        rows = [(code(row[0]), *map(escape, row[1:])) for row in shown.rows]
        title = shown.title[:1].lower() + shown.title[1:]
        yield table(f"Text generation: {title}", shown.columns, rows, folded=True)
    formulas = [(code(name), escape(text)) for name, text in found.formulas]
    yield table("Text generation: formulas", ("Name", "Is"), formulas, folded=True)


def _case(cell: CaseCell | None) -> str:
    if cell is None:
        return figures.NONE
    text = "cannot be run" if cell.problem else figures.figure(cell.noise, 3)
    return text if cell.holds else f"**{text}** ({escape(cell.limit)})"


def _walk(check: ShownCheck) -> Section | None:
    if check.walk is None:
        return None
    rows = [
        (
            code(layer.title) + (" departs first" if layer.is_first else ""),
            escape(layer.operator),
            f"{layer.place:,}",
            *(figures.figure(value, 3) for value in (layer.noise, layer.added)),
            figures.cosine(layer.cosine),
        )
        for layer in check.walk.worst
    ]
    columns = ("Layer", "Operator", "Place>", "Noise>", "Added>", "Cosine>")
    return table(f"Error by layer: {escape(check.of)}", columns, rows, folded=True)
