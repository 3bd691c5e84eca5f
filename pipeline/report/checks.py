"""What the checks measured, read from the facts of their nodes: data of unknown shape.

Two checks have a form of their own, a table of cases and a walk through the layers; of every other one
each list of records becomes a table, and the rest rows of keys and values. A key that is missing reads
as nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.facts import STEP, Facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.report.schema import CheckEntry, NodeReport, Report

INVARIANCE, LAYERS = "invariance", "layers"

ELSEWHERE = frozenset({"generation_speed"})
"""Checks whose figures have a section of their own; see `writing`."""

KNOWN = {
    INVARIANCE: ("cases",),
    LAYERS: ("layers", "worst", "first", "against", "samples", "limit", "unmatched"),
}
"""Facts that have a form of their own."""

MAX_TABLE_ROWS = 60
"""Of one list of records; the page says how many it leaves out."""

MAX_COLUMNS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTable:
    """A list of records as the check wrote it: columns of unknown names.

    Attributes:
        total: How many records there are; not all of them need to be in `rows`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One inner value of a graph beside the same value of the graph before it.

    Attributes:
        place: In the order of the graph, from 1.
        noise: How far it is away.
        added: What its own nodes brought of that; None when it is not known.
        rank: 1 for the one that adds most; None when the check does not rank it.
        is_first: The first one that departs beyond the tolerance.
    """

    place: int
    name: str
    operator: str
    node: str
    layer: str
    noise: float | None
    added: float | None
    cosine: float | None
    rank: int | None
    is_first: bool

    @property
    def title(self) -> str:
        """The layer's name for people, else that of the value."""
        return self.layer or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWalk:
    """The values of one graph, in its order.

    Attributes:
        against: What they are compared with: a stage, or torch.
        samples: On how many samples; None when it is not told.
        unmatched: Values that have no counterpart; None when it is not told.
        limit: What a value's own nodes may add; None when it is not told.
    """

    against: str
    samples: float | None
    unmatched: float | None
    limit: float | None
    layers: tuple[Layer, ...]

    @property
    def first(self) -> Layer | None:
        """The first one that departs."""
        return next((layer for layer in self.layers if layer.is_first), None)

    @property
    def worst(self) -> tuple[Layer, ...]:
        """Those that are ranked, the first one that departs among them, in the graph's order; ten."""
        ranked = sorted((x for x in self.layers if x.rank is not None), key=lambda x: x.rank or 0)
        kept = {layer.place for layer in ranked[: 9 if self.first else 10]}
        return tuple(layer for layer in self.layers if layer.is_first or layer.place in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCheck:
    """One check of one graph; a graph that several targets share is there once.

    Attributes:
        place: From 1; `check-3` is where the page has it.
        of: The node whose graph was looked at.
        targets: Whose chains have that graph.
        state: Of the node that measured it.
        gates: Places of its gates in the report, from 0.
        holds: Whether all of them hold.
        walk: Of the check `layers`.
        tables, rows: What else there is.
    """

    place: int
    name: str
    node: str
    of: str
    stage: str
    component: str
    targets: tuple[str, ...]
    state: str
    gates: tuple[int, ...]
    holds: bool
    walk: LayerWalk | None
    tables: tuple[RecordTable, ...]
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseCell:
    """How much an output changed in one case.

    Attributes:
        noise: Infinite where something is no finite number; None when nothing was measured.
        problem: Why it could not be run; empty when it could.
        gate: Place of the gate in the report, from 0; None when it was not judged.
    """

    noise: float | None
    sample: str
    problem: str
    gate: int | None
    holds: bool
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseTable:
    """The check `invariance`: cases of outputs by graphs.

    Attributes:
        nodes: (node, targets whose chains have it) for each column.
        rows: (case, output, a cell for each column; None where it was not measured).
    """

    nodes: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, tuple[CaseCell | None, ...]], ...]


def shown_checks(report: Report) -> tuple[ShownCheck, ...]:
    """Every check of every graph; the report as `printable` gives it.

    Those that fail come first, then those of the graphs that findings name.
    """
    entries: dict[str, CheckEntry] = {}
    targets: dict[str, list[str]] = {}
    for target in report.targets:
        for entry in target.checks:
            entries.setdefault(entry.node, entry)
            targets.setdefault(entry.node, []).append(target.name)
    nodes = {node.name: node for node in report.nodes}
    found = []
    for name, entry in entries.items():
        node = nodes.get(name)
        gates = tuple(
            place
            for place, gate in enumerate(report.gates)
            if gate.gate == entry.check and gate.node == entry.of
        )
        found.append((entry, node, gates, all(report.gates[place].is_allowed for place in gates)))
    accused = {finding.node for finding in report.findings}
    found.sort(key=lambda each: (each[3], each[0].of not in accused))
    return tuple(
        _shown(place, entry, node, tuple(dict.fromkeys(targets[entry.node])), gates, holds=holds)
        for place, (entry, node, gates, holds) in enumerate(found, start=1)
    )


def _shown(
    place: int,
    entry: CheckEntry,
    node: NodeReport | None,
    targets: tuple[str, ...],
    gates: tuple[int, ...],
    *,
    holds: bool,
) -> ShownCheck:
    facts = Facts(node.facts if node else {})
    walk = _walk(facts) if entry.check == LAYERS else None
    known = KNOWN[entry.check] if entry.check == INVARIANCE or walk else ()
    if entry.check in ELSEWHERE:
        known = tuple(facts.values)
    rest = {key: value for key, value in facts.values.items() if key not in known}
    tables = list[RecordTable]()
    plain = _without_tables("", rest, tables)
    return ShownCheck(
        place=place,
        name=entry.check,
        node=entry.node,
        of=entry.of,
        stage=entry.stage,
        component=entry.component,
        targets=targets,
        state=node.state if node else "skipped",
        gates=gates,
        holds=holds,
        walk=walk,
        tables=tuple(tables),
        rows=Facts(plain).rows(),
    )


def _without_tables(
    path: str, values: Mapping[str, object], tables: list[RecordTable]
) -> dict[str, object]:
    """The values without lists of records and groups of mappings, which become tables."""
    facts, rest, groups = Facts(values), dict[str, object](), list[tuple[str, Facts]]()
    for key, value in values.items():
        if records := facts.records(key):
            tables.append(_table(_path(path, key), records))
        elif isinstance(value, dict):
            inner = _without_tables(_path(path, key), value, tables)
            inner = {k: v for k, v in inner.items() if v not in ([], (), {})}
            scalars = {k: v for k, v in inner.items() if not isinstance(v, dict | list | tuple)}
            if path and scalars and len(scalars) == len(inner):
                groups.append((key, Facts({"": key} | scalars)))
            elif inner:
                rest[key] = inner
        else:
            rest[key] = value
    if len(groups) > 1:
        tables.append(_table(path, [record for _, record in groups]))
    else:
        rest |= {key: {k: v for k, v in record.values.items() if k} for key, record in groups}
    return rest


def _path(path: str, key: str) -> str:
    return f"{path}{STEP}{key}" if path else key


def _table(title: str, records: Sequence[Facts]) -> RecordTable:
    kept = records[:MAX_TABLE_ROWS]
    columns = tuple(dict.fromkeys(key for record in kept for key in record.values))[:MAX_COLUMNS]
    return RecordTable(
        title=title,
        columns=columns,
        rows=tuple(tuple(record.cell(column) for column in columns) for record in kept),
        total=len(records),
    )


def _walk(facts: Facts) -> LayerWalk | None:
    records = facts.records("layers")
    if not records:
        return None
    worst = facts.values.get("worst")
    ranked = [str(name) for name in worst] if isinstance(worst, list | tuple) else []
    ranks = {name: place for place, name in reversed(list(enumerate(ranked, start=1)))}
    first = facts.text("first")
    layers = []
    for place, record in enumerate(records, start=1):
        name = record.text("name")
        layers.append(
            Layer(
                place=place,
                name=name,
                operator=record.text("operator"),
                node=record.text("node"),
                layer=record.text("layer"),
                noise=record.number("noise"),
                added=record.number("added"),
                cosine=record.number("cosine"),
                rank=ranks.get(name),
                is_first=bool(first) and name == first,
            )
        )
    return LayerWalk(
        against=facts.text("against"),
        samples=facts.number("samples"),
        unmatched=facts.number("unmatched"),
        limit=facts.number("limit"),
        layers=tuple(layers),
    )


def case_table(report: Report) -> CaseTable | None:
    """What the check `invariance` measured; the report as `printable` gives it."""
    nodes = {node.name: node for node in report.nodes}
    entries: dict[str, tuple[CheckEntry, list[str]]] = {}
    for target in report.targets:
        for entry in target.checks:
            if entry.check == INVARIANCE:
                entries.setdefault(entry.node, (entry, []))[1].append(target.name)
    cells: dict[tuple[str, str], dict[str, CaseCell]] = {}
    for name, (entry, _) in entries.items():
        facts = Facts(nodes[name].facts if name in nodes else {})
        for case, output, cell in _cases(report, entry, facts):
            cells.setdefault((case, output), {})[name] = cell
    if not cells:
        return None
    return CaseTable(
        nodes=tuple((entry.of, ", ".join(dict.fromkeys(of))) for entry, of in entries.values()),
        rows=tuple(
            (case, output, tuple(found.get(name) for name in entries))
            for (case, output), found in cells.items()
        ),
    )


def _cases(report: Report, entry: CheckEntry, facts: Facts) -> Iterator[tuple[str, str, CaseCell]]:
    """(case, output, cell), the variants of a case taken together."""
    groups: dict[tuple[str, str], list[Facts]] = {}
    for record in facts.records("cases"):
        groups.setdefault((record.text("case"), record.text("output")), []).append(record)
    for (case, output), records in groups.items():
        noise, sample, problem = _largest(records)
        end = f".{output}.{case}"
        place = next(
            (
                place
                for place, gate in enumerate(report.gates)
                if gate.gate == INVARIANCE and gate.node == entry.of and gate.metric.endswith(end)
            ),
            None,
        )
        yield (
            case,
            output,
            CaseCell(
                noise=noise,
                sample=sample,
                problem=problem,
                gate=place,
                holds=place is None or report.gates[place].is_allowed,
                limit="" if place is None else report.gates[place].limit,
            ),
        )


def _largest(records: Sequence[Facts]) -> tuple[float | None, str, str]:
    """The largest noise of any row, of which sample, and what went wrong if anything did."""
    rows = list[tuple[float, str]]()
    for record in records:
        noises, samples = record.values.get("noises"), record.values.get("samples")
        if isinstance(noises, list | tuple) and isinstance(samples, list | tuple):
            each = Facts(dict(_numbered(noises)))
            names = Facts(dict(_numbered(samples)))
            rows += [
                (math.inf if (noise := each.number(key)) is None else noise, names.text(key))
                for key in each.values
            ]
        elif (noise := record.number("noise")) is not None:
            rows.append((noise, record.text("sample")))
    problem = next((text for record in records if (text := record.text("problem"))), "")
    noise, sample = max(rows, default=(None, ""), key=lambda row: row[0])
    return noise, sample, problem


def _numbered(values: Sequence[object]) -> Iterator[tuple[str, object]]:
    """Each value with its place as a text, to be read as facts are."""
    return ((str(place), value) for place, value in enumerate(values))
