"""How fast decoders write: what the check `generation_speed` measured, as tables for people.

Facts may hold anything: a key that is missing reads as no figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.report import figures
from pipeline.report.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.report.schema import Report

CHECK: Final = "generation_speed"

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
    found = tuple(_measured(report))
    if not found:
        return None
    tables = (
        _table("Writing", found, "times", _TIMES),
        _table("Requests at random times", found, "server", _SERVER),
        _table("The texts in order of length", found, "batching", _BATCHING),
        _table("A new process, and what this machine can do at best", found, "", _PROCESS),
    )
    formulas = {
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
    for targets, facts in _measured(report):
        told = ", ".join(
            f"{speed:,.{0 if speed >= 100 else 1}f} at batch {batch:g}"
            for each in facts.records("times")
            if (speed := each.number("decode_tokens_per_s")) is not None
            and (batch := each.number("batch")) is not None
        )
        text = told.replace(" at", " tokens/s at", 1)
        found |= dict.fromkeys(targets.split(", ") if text else (), text)
    return found


def _measured(report: Report) -> Iterator[tuple[str, Facts]]:
    """Names of the targets that share a graph, and its facts."""
    targets: dict[str, list[str]] = {}
    for target in report.targets:
        for entry in target.checks:
            if entry.check == CHECK:
                targets.setdefault(entry.node, []).append(target.name)
    nodes = {node.name: node for node in report.nodes}
    for name, sharing in targets.items():
        if name in nodes and nodes[name].facts:
            yield ", ".join(dict.fromkeys(sharing)), Facts(nodes[name].facts)


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


def _gain(facts: Facts) -> str:
    """The ratio with its interval."""
    told = figures.ratio(facts.number("sorted_over_unsorted"))
    ends = facts.values.get("interval")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return told
    low, high = (Facts({"": end}).number("") for end in ends)
    return f"{told} ({figures.ratio(low)} to {figures.ratio(high)})"


def _said(facts: Facts) -> str:
    """What LoadGen says itself."""
    said = facts.child("loadgen")
    return ", ".join(f"{key} {said.cell(key)}" for key in said.values)


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
