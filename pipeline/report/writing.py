"""What decoders write beside their checkpoint, and how fast, as tables for people.

Facts may hold anything: a key that is missing reads as no figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.report import figures
from pipeline.report.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pipeline.report.schema import Report

SPEED: Final = "generation_speed"
NEARNESS: Final = ("generation", "seq2seq")
"""Checks of what is written; of decoders, and of those behind encoders."""

_Cell = tuple[str, "Callable[[Facts], str]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingTable:
    """One table.

    Attributes:
        columns: Names; one that ends in `>` holds figures and is set flush right.
        rows: Texts; the first of each names the targets.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """All that was measured.

    Attributes:
        tables: Those that have rows.
        formulas: What each name means, once for all targets.
    """

    tables: tuple[WritingTable, ...]
    formulas: tuple[tuple[str, str], ...]


def writing_of(report: Report) -> Writing | None:
    """What was measured of all targets; None when nothing was. The report as `printable` gives it."""
    near, found = tuple(_measured(report, NEARNESS)), tuple(_measured(report, (SPEED,)))
    if not found and not near:
        return None
    tables = (
        _table("Real text beside the checkpoint, at every position", near, "", _NEARNESS),
        _table("Writing", found, "times", _TIMES),
        _table("Requests at random times", found, "server", _SERVER),
        _table("The texts in order of length", found, "batching", _BATCHING),
        _table("A new process, and what this machine can do at best", found, "", _PROCESS),
    )
    formulas = (_FORMULAS if near else {}) | {
        name: text
        for _, facts in found
        for name, text in facts.child("formulas").values.items()
        if isinstance(text, str)
    }
    return Writing(
        tables=tuple(table for table in tables if table.rows),
        formulas=tuple(sorted(formulas.items())),
    )


def writing_speeds(report: Report) -> dict[str, str]:
    """Target -> tokens a second behind the first, of each batch that was timed."""
    found: dict[str, str] = {}
    for targets, facts in _measured(report, (SPEED,)):
        timed = facts.records("times")
        batches = [each.number("batch") for each in timed]
        # A recipe may name several lengths for one batch.
        is_plain = len(set(batches)) == len(batches)
        told = ", ".join(
            f"{speed:,.{0 if speed >= 100 else 1}f} at batch {batch:g}"
            + ("" if is_plain else f" ({_length(each)})")
            for each in timed
            if (speed := each.number("decode_tokens_per_s")) is not None
            and (batch := each.number("batch")) is not None
        )
        text = told.replace(" at", " tokens/s at", 1)
        found |= dict.fromkeys(targets.split(", ") if text else (), text)
    return found


def writing_nearness(report: Report) -> dict[str, str]:
    """Target -> perplexity beside that of the checkpoint."""
    found: dict[str, str] = {}
    for targets, facts in _measured(report, NEARNESS):
        perplexity, divergence = facts.child("perplexity"), facts.child("divergence")
        if perplexity.number("ratio") is None:
            continue
        text = (
            f"perplexity {figures.figure(perplexity.number('candidate'))}, the checkpoint "
            f"{figures.figure(perplexity.number('reference'))}: {_ratio(facts)}; the same likeliest "
            f"token at {figures.score(divergence.number('top1'))} of "
            f"{figures.plural(int(divergence.number('positions') or 0), 'position')}"
        )
        found |= dict.fromkeys(targets.split(", "), text)
    return found


def _length(facts: Facts) -> str:
    """As gates name it: tokens of the prompt + new tokens."""
    return "+".join(figures.figure(facts.number(key)) for key in ("prompt", "tokens"))


def _measured(report: Report, checks: Collection[str]) -> Iterator[tuple[str, Facts]]:
    """Names of the targets that share a delivered graph, and what such a check says of it."""
    targets: dict[str, list[str]] = {}
    for target in report.targets:
        # The first graph of a chain is looked at too, and comes before that which is delivered.
        last = [entry.node for entry in target.checks if entry.check in checks][-1:]
        for node in last:
            targets.setdefault(node, []).append(target.name)
    nodes = {node.name: node for node in report.nodes}
    for name, sharing in targets.items():
        if name in nodes and nodes[name].facts:
            yield ", ".join(sharing), Facts(nodes[name].facts)


def _table(
    title: str, found: tuple[tuple[str, Facts], ...], key: str, cells: tuple[_Cell, ...]
) -> WritingTable:
    """A row for each record under `key`; without a key one for each graph."""
    rows = [
        (name, *(show(record) for _, show in cells))
        for name, facts in found
        for record in (facts.records(key) if key else (facts,))
    ]
    # Behind an encoder there is no mfu, and without LoadGen nothing that it says.
    kept = [
        at
        for at in range(1 + len(cells))
        if at == 0 or any(row[at] not in ("", figures.NONE) for row in rows)
    ]
    columns = ("Target", *(name for name, _ in cells))
    return WritingTable(
        title=title,
        columns=tuple(columns[at] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in rows),
    )


def _figure(key: str, digits: int = 4) -> Callable[[Facts], str]:
    return lambda facts: figures.figure(facts.number(key), digits)


def _milliseconds(key: str) -> Callable[[Facts], str]:
    return lambda facts: figures.milliseconds(facts.number(key))


def _per_second(key: str) -> Callable[[Facts], str]:
    return lambda facts: figures.per_second(facts.number(key))


def _percent(key: str) -> Callable[[Facts], str]:
    return lambda facts: figures.percent(facts.number(key))


def _size(key: str) -> Callable[[Facts], str]:
    return lambda facts: figures.size(facts.number(key))


def _seconds(key: str) -> Callable[[Facts], str]:
    def show(facts: Facts) -> str:
        value = facts.number(key)
        return figures.milliseconds(None if value is None else value * 1e3)

    return show


def _decimal(key: str, unit: str = "") -> Callable[[Facts], str]:
    """In thousands, millions and so on."""

    def show(facts: Facts) -> str:
        value, prefixes = facts.number(key), iter(("", "k", "M", "G", "T", "P"))
        if value is None:
            return figures.NONE
        prefix = next(prefixes)
        while abs(value) >= 1000 and (larger := next(prefixes, None)):
            value, prefix = value / 1000, larger
        return f"{value:.3g} {prefix}{unit}".rstrip()

    return show


def _ends(facts: Facts) -> tuple[float | None, float | None] | None:
    ends = facts.values.get("interval")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high = (Facts({"": end}).number("") for end in ends)
    return low, high


def _gain(facts: Facts) -> str:
    """The ratio with its interval."""
    told, ends = figures.ratio(facts.number("sorted_over_unsorted")), _ends(facts)
    return (
        told if ends is None else f"{told} ({figures.ratio(ends[0])} to {figures.ratio(ends[1])})"
    )


def _ratio(facts: Facts) -> str:
    """Perplexity over the checkpoint's; its third decimal counts."""
    perplexity = facts.child("perplexity")
    told, ends = _times(perplexity.number("ratio")), _ends(perplexity)
    return told if ends is None else f"{told} ({_times(ends[0])} to {_times(ends[1])})"


def _times(value: float | None) -> str:
    return figures.NONE if value is None else f"{value:.4f}{figures.TIMES}"


def _inside(key: str, form: Callable[[str], Callable[[Facts], str]]) -> Callable[[Facts], str]:
    """What stands one level deeper."""
    outer, _, inner = key.partition(".")
    show = form(inner)
    return lambda facts: show(facts.child(outer))


def _score(key: str) -> Callable[[Facts], str]:
    return lambda facts: figures.score(facts.number(key))


def _said(facts: Facts) -> str:
    """What LoadGen says itself."""
    said = facts.child("loadgen")
    return ", ".join(f"{key} {said.cell(key)}" for key in said.values)


_NEARNESS: Final[tuple[_Cell, ...]] = (
    ("Perplexity>", _inside("perplexity.candidate", _figure)),
    ("Checkpoint's>", _inside("perplexity.reference", _figure)),
    ("Ratio>", _ratio),
    ("KL mean>", _inside("divergence.kl_mean", _figure)),
    ("KL largest>", _inside("divergence.kl_max", _figure)),
    ("Top 1>", _inside("divergence.top1", _score)),
    ("Top 5>", _inside("divergence.top5", _score)),
    ("Positions>", _inside("divergence.positions", _figure)),
)
_FORMULAS: Final[dict[str, str]] = {
    "perplexity": "exp of the mean of -log p of each next token of the evaluation texts",
    "perplexity, ratio": "exp of the mean difference of -log p; the interval is that of 95 %, by text",
    "kl": "sum of p (log p - log q) over the vocabulary at one position, nats; p is the checkpoint's",
    "top 1": "share of positions at which the likeliest token is the checkpoint's",
    "top 5": "share of the checkpoint's five likeliest tokens that are among the five likeliest",
}
_TIMES: Final[tuple[_Cell, ...]] = (
    ("Texts>", _figure("batch")),
    ("Prompt>", _figure("prompt")),
    ("New tokens>", _figure("tokens")),
    ("ttft>", _milliseconds("ttft_ms")),
    ("tpot>", _milliseconds("tpot_ms")),
    ("itl p50>", _milliseconds("itl_p50_ms")),
    ("itl p99>", _milliseconds("itl_p99_ms")),
    ("Prefill tokens>", _per_second("prefill_tokens_per_s")),
    ("Decode tokens>", _per_second("decode_tokens_per_s")),
    ("mbu>", _percent("mbu")),
    ("mfu>", _percent("mfu")),
    ("Source's cache>", _size("source_cache_bytes")),
)
_SERVER: Final[tuple[_Cell, ...]] = (
    ("Asked by", lambda facts: facts.cell("generator")),
    ("Requests>", _figure("requests")),
    ("Asked>", _per_second("requests_per_s")),
    ("Together at most>", _figure("batch")),
    ("ttft p50>", _milliseconds("ttft_p50_ms")),
    ("ttft p99>", _milliseconds("ttft_p99_ms")),
    ("tpot mean>", _milliseconds("tpot_mean_ms")),
    ("Good>", _percent("good")),
    ("Goodput>", _per_second("goodput_per_s")),
    ("Served>", _per_second("served_per_s")),
    ("LoadGen says", _said),
)
_BATCHING: Final[tuple[_Cell, ...]] = (
    ("Texts>", _figure("texts")),
    ("Tokens of a text", lambda facts: facts.cell("lengths").replace(", ", " to ")),
    ("Batch>", _figure("batch")),
    ("New tokens>", _figure("tokens")),
    ("As they come>", _per_second("unsorted_tokens_per_s")),
    ("In order>", _per_second("sorted_tokens_per_s")),
    ("Ratio>", _gain),
    ("Padding as they come>", _percent("unsorted_padding")),
    ("Padding in order>", _percent("sorted_padding")),
)
_PROCESS: Final[tuple[_Cell, ...]] = (
    ("Load>", _seconds("load_s")),
    ("Cold start>", _seconds("cold_start_s")),
    ("Peak memory>", lambda facts: figures.mebibytes(facts.number("peak_rss_mib"))),
    ("Weights>", _size("weight_bytes")),
    ("Cache of a token>", _size("cache_bytes_per_token")),
    ("Operations of a token>", _decimal("flops_per_token")),
    ("Threads>", _figure("threads")),
    ("Reads>", _decimal("read_bytes_per_s", "B/s")),
    ("Computes>", _decimal("float32_flops_per_s", "FLOP/s")),
    ("Session", lambda facts: facts.cell("session")),
)
