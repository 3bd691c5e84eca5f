"""`report.md`: for people in a terminal or a browser, and for GitHub's step summary.

GitHub refuses a step summary above 1 MiB, so sections are cut to a budget, and say so. Names and
texts of the report are hostile: what could start markup is written as a character reference, which
Markdown never reads as structure (CommonMark 0.31.2, 2.5).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.charts import clipped
from pipeline.report.devices import device_rows, torch_rows
from pipeline.report.distributions import spreads
from pipeline.report.engines import engines_of
from pipeline.report.facts import Facts
from pipeline.report.markdown_evidence import (
    check_sections,
    gate_sections,
    gate_words,
    noise_sections,
    writing_sections,
)
from pipeline.report.markdown_parts import VERDICT_MARKS, Section, code, escape, table
from pipeline.report.printable import printable
from pipeline.report.summary import (
    VERDICT_WORDS,
    TargetSummary,
    failed_nodes,
    headline,
    place,
    problems,
    qualities,
    shape_heading,
    stage_errors,
    summarise,
)
from pipeline.report.verdicts import causes, unexplained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.bench.types import Interval
    from pipeline.report.schema import NodeReport, Report

MAX_BYTES = 1_000_000
"""Of the whole text; GitHub's limit is 1 MiB (1,048,576 bytes) for a step's summary."""


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, verdict first, always below `MAX_BYTES`."""
    shown = printable(report)
    sections = (
        _verdict(shown),
        _warnings(shown),
        _targets(shown),
        _quality(shown),
        _failed_stages(shown),
        *gate_sections(shown),
        *noise_sections(report),
        _parity(shown),
        _spreads(report),
        *check_sections(shown),
        _latency(shown),
        *writing_sections(shown),
        _device_times(shown),
        _torch_runs(shown),
        _engines(shown),
        _fusions(shown),
        _worst_samples(shown),
        _plan(shown),
        _mapping("Environment", shown.environment),
        _mapping("Source", shown.source),
        _mapping("Recipe", shown.recipe),
    )
    return _within_budget([section for section in sections if section is not None])


def _within_budget(sections: Sequence[Section]) -> str:
    """Join the sections; the lines that do not fit are left out, and counted."""
    budget = MAX_BYTES - sum(_bytes(section.head) + _bytes(section.foot) for section in sections)
    budget -= 200 * len(sections)  # for the notes on what was cut
    parts: list[str] = []
    for section in sections:
        kept = []
        for line in section.lines:
            budget -= _bytes((line,))
            if budget < 0:
                break
            kept.append(line)
        cut = len(section.lines) - len(kept)
        note = ("", f"*Cut here: {figures.plural(cut, 'more line')}, see report.json.*")
        parts += [*section.head, *kept, *section.foot, *(note if cut else ()), ""]
    return "\n".join(parts).rstrip() + "\n"


def _bytes(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _verdict(report: Report) -> Section:
    mark = VERDICT_MARKS[report.verdict]
    made = f"Version {code(report.version)}, made {code(report.created_at)}."
    return Section(
        head=(
            f"# {mark} {report.verdict.capitalize()}: {escape(report.name)}",
            "",
            f"{escape(figures.sentence(headline(report)))} {made}",
            "",
        ),
        lines=tuple(_reasons(report)),
    )


def _reasons(report: Report) -> Iterator[str]:
    """Findings in place of the gates that they explain; without any, what the report says."""
    faults = causes(report)
    if not faults:
        yield from (f"- {escape(reason)}" for reason in report.reasons)
        return
    yield from (f"- {escape(node.name)} failed" for node in failed_nodes(report))
    for cause in faults:
        yield f"- **{escape(', '.join(cause.targets))}**: {escape(cause.sentence)}"
        shown = () if cause.gates else cause.behind[:3]
        yield from (f"  - {escape(gate_words(report, gate))}" for gate in shown)
        count = len(cause.gates) + len(cause.behind)
        if count:
            yield f"  - {figures.plural(count, 'gate fails', 'gates fail')} for it"
        for sample in report.worst_samples:
            if sample.target == cause.targets[0]:
                told = f"{sample.metric.replace('_', ' ')} {figures.metric(sample.metric, sample.value)}"
                yield (
                    f"  - worst sample of {code(sample.target)}, {sample.index}: "
                    f"{escape(clipped(sample.text, 140))} ({escape(told)})"
                )
                break
    yield from (f"- {escape(gate_words(report, gate))}" for gate in unexplained(report))


def _warnings(report: Report) -> Section | None:
    lines = tuple(f"- {escape(warning)}" for warning in report.warnings)
    return Section(head=("## Warnings", ""), lines=lines) if lines else None


def _targets(report: Report) -> Section | None:
    rows = [_target_row(row) for row in summarise(report)]
    columns = ("Target", "Verdict", "Precision", "Size>", "Worst cosine>", "Speed>", "Notes")
    return table("Targets", columns, rows)


def _target_row(row: TargetSummary) -> tuple[str, ...]:
    target, slowest = row.target, row.slowest
    speed = escape(row.writing) or "not measured"
    if slowest is not None:
        at = f" at {escape(place(slowest))}"
        speed = _with_interval(slowest.speedup, slowest.speedup_interval, "ratio") + at
    cosine = figures.cosine(row.cosine.value) if row.cosine else "not measured"
    return (
        code(target.name),
        f"{VERDICT_MARKS[row.verdict]} {VERDICT_WORDS[row.verdict]}",
        f"{escape(target.runtime)} {escape(target.precision)}",
        figures.size(row.files_bytes),
        f"{cosine} (proxy)" if target.proxy and row.cosine else cosine,
        speed,
        escape("; ".join(row.notes)),
    )


def _quality(report: Report) -> Section | None:
    rows = [
        (
            code(row.target) + (f" {code(row.component)}" if row.component else ""),
            escape(row.quality.metric.replace("_", " ")) + (" (proxy)" if row.is_proxy else ""),
            figures.quality(row.quality.metric, row.quality.score),
            figures.quality(row.quality.metric, row.quality.reference_score),
            figures.lost(row.quality.metric, row.quality.drop),
            figures.interval(row.quality.metric, row.quality.drop_low, row.quality.drop_high),
            figures.figure(row.quality.gained),
            figures.figure(row.quality.lost),
            figures.figure(row.quality.answers),
        )
        for row in qualities(report)
    ]
    columns = (
        *("Target", "Metric", "Score>", "Checkpoint>", "Drop>", "95 %>", "Gained>", "Lost>"),
        "Answers>",
    )
    return table("Quality", columns, rows)


def _with_interval(value: float, interval: Interval, kind: str) -> str:
    show = figures.ratio if kind == "ratio" else figures.milliseconds
    return f"{show(value)} ({show(interval.low)} to {show(interval.high)})"


def _failed_stages(report: Report) -> Section | None:
    lines: list[str] = []
    for node in failed_nodes(report):
        lines += _failure_lines(node)
    return Section(head=("## Failed stages", ""), lines=tuple(lines)) if lines else None


def _failure_lines(node: NodeReport) -> list[str]:
    if node.failure is None:
        return [f"- {code(node.name)}"]
    signal = f" ({escape(node.failure.signal)})" if node.failure.signal else ""
    lines = [f"- {code(node.name)}{signal}: {escape(node.failure.message)}"]
    if node.failure.hint:
        lines.append(f"  - hint: {escape(node.failure.hint)}")
    lines += [f"  - log: {escape(line)}" for line in node.failure.last_lines[-10:]]
    return lines


def _parity(report: Report) -> Section | None:
    rows: list[tuple[str, ...]] = []
    for target in report.targets:
        for error in stage_errors(target):
            m = error.output.metrics
            rows.append(
                (
                    code(target.name),
                    code(error.stage.node),
                    code(error.output.name),
                    figures.cosine(m.cosine_similarity),
                    figures.cosine(m.cosine_similarity_mean),
                    figures.figure(m.max_abs_diff, 3),
                    figures.figure(m.mean_abs_diff, 3),
                    figures.figure(m.relative_l2, 3),
                    figures.figure(error.added_relative_l2, 3),
                    figures.decibels(m.sqnr_db),
                    figures.score(m.top1_agreement),
                )
            )
        rows += [
            (code(target.name), escape(problem), *[""] * 9) for problem in problems(target.parity)
        ]
    columns = (
        *("Target", "After", "Output", "Cosine min>", "Mean>", "Max abs>", "Mean abs>"),
        *("Relative L2>", "Added>", "SQNR>", "Top 1>"),
    )
    return table("Parity after each stage", columns, rows, folded=True)


def _spreads(report: Report) -> Section | None:
    rows = [
        (
            code(spread.target),
            code(spread.series),
            f"{spread.count:,}",
            *(
                figures.figure(value, 3)
                for value in (spread.least, spread.median, spread.p95, spread.most)
            ),
            figures.cosine(spread.least_cosine),
        )
        for spread in spreads(report)
    ]
    columns = (
        *("Target", "Output", "Samples>", "Least>", "Median>", "95 %>", "Largest>"),
        "Least cosine>",
    )
    return table("Relative L2 of single samples", columns, rows, folded=True)


def _latency(report: Report) -> Section | None:
    rows = [
        (
            code(target.name),
            shape.label,
            _with_interval(
                shape.reference.latency_p50_ms, shape.reference.latency_p50_ms_interval, "ms"
            ),
            _with_interval(
                shape.candidate.latency_p50_ms, shape.candidate.latency_p50_ms_interval, "ms"
            ),
            _with_interval(shape.speedup, shape.speedup_interval, "ratio"),
            f"±{figures.percent(shape.noise_floor)}",
            f"±{figures.percent(target.benchmark.margin)}",
            shape.verdict,
        )
        for target in report.targets
        if target.benchmark is not None
        for shape in target.benchmark.shapes
    ]
    columns = (
        *("Target", escape(shape_heading(report)), "Torch p50>", "Target p50>", "Speedup>"),
        *("A/A floor>", "Margin>", "Verdict"),
    )
    return table("Speed (median and 95 % interval)", columns, rows, folded=True)


def _device_times(report: Report) -> Section | None:
    """The parts of calls on a GPU, where there was one."""
    rows = [
        (
            code(row.target),
            row.shape,
            row.part,
            *(
                figures.figure(ms, 3)
                for ms in (
                    *(row.times.median_ms, row.times.p90_ms),
                    *(row.times.p95_ms, row.times.p99_ms),
                )
            ),
            figures.percent(row.times.coefficient_of_variation),
        )
        for row in device_rows(report)
    ]
    columns = (
        *("Target", escape(shape_heading(report)), "Part of a call", "Median ms>", "90 %>"),
        *("95 %>", "99 %>", "Variation>"),
    )
    return table("Calls on the GPU", columns, rows, folded=True)


def _torch_runs(report: Report) -> Section | None:
    """The checkpoint in torch on the GPU, where the recipe asked for it."""
    rows = [
        (
            code(row.name),
            escape(row.shape),
            escape(row.output),
            *(figures.figure(number, 3) for number in (row.cosine, row.relative_l2)),
            *(figures.figure(number, 3) for number in (row.reference_ms, row.ms, row.speedup)),
        )
        for row in torch_rows(report)
    ]
    columns = (
        *("Torch", escape(shape_heading(report)), "Output", "Cosine>", "Relative L2>"),
        *("float32 ms>", "This ms>", "Speedup>"),
    )
    return table("Torch on this GPU (not judged)", columns, rows, folded=True)


def _engines(report: Report) -> Section | None:
    rows = [
        (
            code(engine.target),
            code(engine.engine.compute_capability),
            figures.size(engine.engine.size_bytes),
            escape("; ".join(engine.headline)),
        )
        for engine in engines_of(report)
    ]
    return table("Engines", ("Target", "For", "Size>", "The builder says"), rows, folded=True)


def _fusions(report: Report) -> Section | None:
    rows = []
    for node in report.nodes:
        for pattern, facts in Facts(node.facts).child("fusions").children():
            refused = facts.records("refused")
            why = "; ".join(f"{r.text('node')}: {r.text('reason')}" for r in refused[:5])
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            fired = figures.figure(facts.number("fired"))
            rows.append(
                (code(node.name), code(pattern), fired, str(len(refused)), escape(why + more))
            )
    columns = ("Node", "Pattern", "Fired>", "Refused>", "Why not")
    return table("Fusions", columns, rows, folded=True)


def _worst_samples(report: Report) -> Section | None:
    rows = [
        (
            code(sample.target),
            code(sample.output),
            str(sample.index),
            f"{escape(sample.metric)} {figures.metric(sample.metric, sample.value)}",
            escape(sample.text),
            escape(sample.label),
        )
        for sample in report.worst_samples
    ]
    columns = ("Target", "Output", "Sample>", "Measured", "Text", "True answer")
    return table("Worst samples", columns, rows, folded=True)


def _plan(report: Report) -> Section | None:
    rows = [
        (
            code(node.name),
            node.state,
            figures.seconds(node.wall_time_s),
            figures.mebibytes(node.peak_rss_mib),
            escape("; ".join(node.reasons)),
        )
        for node in report.nodes
    ]
    columns = ("Node", "State", "Time>", "Peak memory>", "Why it ran")
    return table("Plan", columns, rows, folded=True)


def _mapping(title: str, values: dict[str, object]) -> Section | None:
    if title == "Recipe":
        # Indented code needs no fence that a text could close.
        text = json.dumps(values, indent=2, default=str)
        lines = tuple(f"    {line}" for line in text.splitlines())
        head = (f"<details><summary><strong>{title}</strong></summary>", "")
        return Section(head=head, lines=lines, foot=("", "</details>"))
    rows = [(escape(key), escape(value)) for key, value in Facts(values).rows()]
    return table(title, ("Key", "Value"), rows, folded=True)
