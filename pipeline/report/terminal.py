"""The few lines that the command line prints at the end: plain text, no colour, no escapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.printable import printable
from pipeline.report.summary import (
    VERDICT_WORDS,
    TargetSummary,
    blame,
    failed_nodes,
    headline,
    place,
    qualities,
    summarise,
)
from pipeline.report.verdicts import causes, unexplained

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import NodeReport, Report
    from pipeline.report.verdicts import Cause

MAX_LISTED = 6
"""Of gates, stages and reasons each; the rest is in the report's files."""

MAX_OF_CAUSE = 2
"""Broken gates below a finding that no gate accuses."""

MAX_LINE = 280
"""Characters."""

MAX_FINDING = 400
"""Characters of a finding: it is the one line that has to say everything."""


def render_terminal_summary(report: Report) -> str:
    """Verdict, a line for each target, then what failed and why; ends with a newline."""
    shown = printable(report)
    lines = [f"{shown.verdict.upper()}  {shown.name} {shown.version}: {headline(shown)}"]
    lines += _target_lines(summarise(shown), _quality_lines(shown))
    failed, found, broken = failed_nodes(shown), causes(shown), unexplained(shown)
    if failed:
        lines += ["", "Failed stages:", *_listed(_node_lines(node) for node in failed)]
    if found:
        lines += ["", "Findings:", *_listed(_cause_lines(cause) for cause in found)]
    if broken:
        blocks = (_gate_lines(shown, gate) for gate in broken)
        title = "Other gates that do not hold:" if found else "Gates that do not hold:"
        lines += ["", title, *_listed(blocks)]
    if shown.reasons and not failed and not found and not broken:
        lines += ["", "Reasons:", *_listed([f"  {reason}"] for reason in shown.reasons)]
    if shown.warnings:
        blocks = ([f"  {warning}"] for warning in shown.warnings)
        lines += ["", "Warnings:", *_listed(blocks)]
    told_whole = {line for cause in found for line in _cause_lines(cause)[:1]}
    limits = (MAX_FINDING if line in told_whole else MAX_LINE for line in lines)
    return "\n".join(map(_one_line, lines, limits)) + "\n"


def _quality_lines(report: Report) -> dict[str, list[str]]:
    """Target -> how often it is right."""
    found: dict[str, list[str]] = {}
    told = set[tuple[str, str]]()
    for row in qualities(report):
        if (row.target, row.component) in told:
            continue  # the task's own figure comes first; the others are in the report's files
        told.add((row.target, row.component))
        quality = row.quality
        proxy = "proxy " if row.is_proxy else ""
        where = f" of {row.component}" if row.component else ""
        range_ = figures.interval(quality.metric, quality.drop_low, quality.drop_high)
        found.setdefault(row.target, []).append(
            f"      {proxy}{quality.metric.replace('_', ' ')}{where} "
            f"{figures.quality(quality.metric, quality.score)}, the checkpoint "
            f"{figures.quality(quality.metric, quality.reference_score)}: "
            f"drop {figures.lost(quality.metric, quality.drop)}"
            + (f" ({range_})" if range_ else "")
            + f", {quality.gained:,} gained, {quality.lost:,} lost"
        )
    return found


def _target_lines(
    summaries: Sequence[TargetSummary], quality: Mapping[str, list[str]]
) -> list[str]:
    rows = [
        (
            row.target.name,
            VERDICT_WORDS[row.verdict],
            _cosine(row),
            _speed(row),
            figures.size(row.files_bytes),
        )
        for row in summaries
    ]
    widths = [min(max(map(len, column)), 48) for column in zip(*rows, strict=True)]
    lines = [""] if rows else []
    for row, cells in zip(summaries, rows, strict=True):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  " + "   ".join(padded).rstrip())
        lines += quality.get(row.target.name, [])
        lines += [f"      {row.nearness}"] if row.nearness else []
        lines += [f"      {note}" for note in row.notes]
    return lines


def _cosine(row: TargetSummary) -> str:
    if row.cosine is None:
        return "parity not measured"
    kind = "proxy worst cosine" if row.target.proxy else "worst cosine"
    return f"{kind} {figures.cosine(row.cosine.value)}"


def _speed(row: TargetSummary) -> str:
    if row.slowest is None:
        return row.writing or "speed not measured"
    interval = row.slowest.speedup_interval
    return (
        f"{figures.ratio(row.slowest.speedup)} "
        f"({figures.ratio(interval.low)} to {figures.ratio(interval.high)}) "
        f"at {place(row.slowest)}"
    )


def _node_lines(node: NodeReport) -> list[str]:
    if node.failure is None:
        return [f"  {node.name}"]
    signal = f" ({node.failure.signal})" if node.failure.signal else ""
    lines = [f"  {node.name}{signal}: {node.failure.message}"]
    if node.failure.last_lines:
        lines.append(f"      last line: {node.failure.last_lines[-1]}")
    if node.failure.hint:
        lines.append(f"      hint: {node.failure.hint}")
    return lines


def _cause_lines(cause: Cause) -> list[str]:
    lines = [f"  {', '.join(cause.targets)}: {cause.sentence}"]
    # A finding that no gate accuses rests on numbers that its sentence does not have to hold.
    shown = () if cause.gates else cause.behind[:MAX_OF_CAUSE]
    return lines + [f"    {_gate_line(gate)}" for gate in shown]


def _gate_lines(report: Report, gate: GateResult) -> list[str]:
    who = blame(report, gate)
    return [_gate_line(gate), *([f"      {who}"] if who else [])]


def _gate_line(gate: GateResult) -> str:
    where = f"  {gate.gate} {gate.target}: "
    if gate.verdict == "not_run":
        return f"{where}{gate.metric} was not run, because {gate.reason}; the recipe needs it"
    measured = figures.judged(gate.metric, gate.measured, holds=False)
    told = f"{gate.metric} is {measured}, the limit is {gate.limit}"
    return f"{where}{told}" + (f" ({gate.reason})" if _adds(gate, measured) else "")


def _adds(gate: GateResult, measured: str) -> bool:
    """Whether the reason says more than metric, number and limit do."""
    return bool(gate.reason) and not (gate.limit in gate.reason and measured[:5] in gate.reason)


def _listed(blocks: Iterable[list[str]]) -> list[str]:
    every = list(blocks)
    lines = [line for block in every[:MAX_LISTED] for line in block]
    if len(every) > MAX_LISTED:
        lines.append(f"  and {len(every) - MAX_LISTED:,} more, see report.md")
    return lines


def _one_line(line: str, limit: int) -> str:
    flat = line.replace("\n", " ").replace("\t", " ")
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
