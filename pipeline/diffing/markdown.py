"""A comparison as Markdown, for people, pull requests and terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.markdown_parts import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.bench.types import BenchmarkResult, ShapeResult
    from pipeline.diffing.types import Change, Difference, GraphChange, NumberChange, TargetChange

MOST_ROWS = 20
"""Rows of one table; `--json` has all."""


def render_markdown(found: Difference) -> str:
    """The whole comparison; thresholds that do not hold come first."""
    return "\n".join(_lines(found)).rstrip() + "\n"


def _lines(found: Difference) -> Iterator[str]:
    old, new = found.old, found.new
    yield f"# {escape(new.name)}: {escape(old.version)} → {escape(new.version)}"
    yield ""
    yield (
        f"{old.verdict}, {figures.size(old.size_bytes)}, {escape(old.created_at)} → "
        f"{new.verdict}, {figures.size(new.size_bytes)}, {escape(new.created_at)}"
    )
    yield ""
    for crossed in found.crossed:
        yield (
            f"- **{escape(crossed.target)}** does not keep `{crossed.threshold}`: "
            f"{escape(crossed.sentence)}"
        )
    if found.crossed:
        yield ""
    for note in found.notes:
        yield f"- {escape(note)}"
    if found.notes:
        yield ""
    for target in found.targets:
        yield from _target(target)
    yield from _changes("Recipe", found.recipe)
    yield from _changes("Checkpoint", found.source, is_digest=True)
    yield from _changes("Versions", found.versions)


def _target(target: TargetChange) -> Iterator[str]:
    yield f"## {escape(target.name)}"
    yield ""
    if target.state != "both":
        yield f"Only in the {'new' if target.state == 'added' else 'old'} artifact."
        yield ""
        return
    rows = [_number(number) for number in (*target.parity, *target.quality, *target.facts)]
    if target.size is not None:
        rows.append(
            (
                "size",
                figures.size(target.size.old),
                figures.size(target.size.new),
                _ratio(target.size.old, target.size.new),
            )
        )
    yield from _table(("", "old", "new", "change"), rows)
    if not target.has_same_samples:
        yield (
            "The distances above were measured on different samples or weights, so a change says "
            "little."
        )
        yield ""
    if target.distances:
        rows = [
            (
                escape(distance.output),
                figures.cosine(distance.metrics.cosine_similarity),
                figures.figure(distance.metrics.relative_l2),
                figures.figure(distance.metrics.max_abs_diff),
            )
            for distance in target.distances
        ]
        yield "New against old, on the same inputs, run now:"
        yield ""
        yield from _table(("output", "worst cosine", "relative L2", "largest difference"), rows)
    if target.speed is not None:
        yield from _speed(target.speed)
    if target.not_run_reason:
        yield f"Not run: {escape(target.not_run_reason)}."
        yield ""
    for graph in target.graphs:
        yield from _graph(graph)


def _number(number: NumberChange) -> tuple[str, ...]:
    name = number.name
    change = figures.NONE
    if number.change is not None:
        change = "same" if number.change == 0 else f"{number.change:+.3g}"
    return (
        escape(name),
        figures.metric(name, number.old),
        figures.metric(name, number.new),
        change,
    )


def _ratio(old: float | None, new: float | None) -> str:
    if not old or new is None:
        return figures.NONE
    return "same" if old == new else f"{figures.TIMES}{new / old:.3f}"


def _speed(speed: BenchmarkResult) -> Iterator[str]:
    rows = [
        (
            shape.description,
            f"{shape.reference.latency_p50_ms:.2f} ms",
            f"{shape.candidate.latency_p50_ms:.2f} ms",
            _speedup(shape),
            f"{shape.noise_floor:.1%}",
            shape.verdict,
        )
        for shape in speed.shapes
    ]
    yield f"Both run now, in the same {speed.launches} launches, {speed.threads} threads:"
    yield ""
    yield from _table(("shape", "old", "new", "new is faster by", "noise", "verdict"), rows)


def _speedup(shape: ShapeResult) -> str:
    low, high = shape.speedup_interval.low, shape.speedup_interval.high
    return f"{shape.speedup:.3f}{figures.TIMES} ({low:.3f} to {high:.3f})"


def _graph(graph: GraphChange) -> Iterator[str]:
    if graph.is_same_file:
        yield f"`{graph.file}` is the same, byte for byte."
        yield ""
        return
    changes = [*graph.operators, *([graph.opset] if graph.opset else [])]
    yield (
        f"`{graph.file}`: {len(graph.layers)} layers are stored otherwise, {graph.layers_same} alike."
    )
    yield ""
    rows = [
        (escape(layer.layer), escape(layer.operator), layer.old or "absent", layer.new or "absent")
        for layer in graph.layers
    ]
    yield from _table(("layer", "operator", "old", "new"), rows)
    yield from _table(
        ("operator", "old", "new"), [(escape(c.name), c.old or "", c.new or "") for c in changes]
    )


def _changes(title: str, changes: Sequence[Change], *, is_digest: bool = False) -> Iterator[str]:
    if not changes:
        return
    cut = 12 if is_digest else 80
    yield f"## {title}"
    yield ""
    rows = [
        (
            escape(change.name),
            escape((change.old or figures.NONE)[:cut]),
            escape((change.new or figures.NONE)[:cut]),
        )
        for change in changes
    ]
    yield from _table(("", "old", "new"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows[:MOST_ROWS]:
        yield f"| {' | '.join(row)} |"
    if len(rows) > MOST_ROWS:
        yield f"| ... {len(rows) - MOST_ROWS} more |{' |' * (len(head) - 1)}"
    yield ""
