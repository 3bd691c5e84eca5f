"""The gates of a report in the order in which people read them: what fails first, the rest folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.noise import limit_of
from pipeline.report.summary import is_build_breaking
from pipeline.report.verdicts import causes, unexplained

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report

ORDER = ("stages", "parity", "quality", "device_parity", "invariance", "speed", "coverage")
"""Kinds of gates that are shown first, in this order; checks follow by name."""

ONLY_MEASURED = "only measured"
"""Stands in place of a limit where a number is told and not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGate:
    """A gate with its place in the report, from 0, by which links find it."""

    place: int
    gate: GateResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BehindCause:
    """Broken gates of what was made from a faulty node's output."""

    node: str
    targets: tuple[str, ...]
    gates: tuple[PlacedGate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldGates:
    """The gates of one kind that hold.

    Attributes:
        limited: How many of them have a limit; the others only measure.
        closest: Largest share of a limit from above that any of them takes; None when none has one.
    """

    kind: str
    gates: tuple[PlacedGate, ...]
    limited: int
    closest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateGroups:
    """All gates, each in one group.

    Attributes:
        broken: Those that accuse what findings name, then those that no finding is about.
        behind: For each finding, what it explains besides.
        not_run: Not run, as the recipe allows, or as they make no sense for a graph.
        held: By kind.
    """

    broken: tuple[PlacedGate, ...]
    behind: tuple[BehindCause, ...]
    not_run: tuple[PlacedGate, ...]
    held: tuple[HeldGates, ...]


def gate_groups(report: Report) -> GateGroups:
    """The gates of a report, grouped."""
    placed = [PlacedGate(place=place, gate=gate) for place, gate in enumerate(report.gates)]
    broken = [each for each in placed if is_build_breaking(each.gate)]
    first, behind, taken = list[PlacedGate](), list[BehindCause](), set[int]()
    for cause in causes(report):
        # A finding that no gate accuses rests on the gates that it explains.
        told = cause.gates or cause.behind
        first += _of(broken, told, taken)
        if rest := _of(broken, cause.behind, taken):
            behind.append(BehindCause(node=cause.node, targets=cause.targets, gates=tuple(rest)))
    first += _of(broken, unexplained(report), taken)
    held = [each for each in placed if each.gate.verdict == "passed"]
    kinds = dict.fromkeys(each.gate.gate for each in held)
    ordered = sorted(kinds, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER))
    return GateGroups(
        broken=tuple(first),
        behind=tuple(behind),
        not_run=tuple(
            each
            for each in placed
            if each.gate.verdict == "not_run" and not is_build_breaking(each.gate)
        ),
        held=tuple(_held(kind, [x for x in held if x.gate.gate == kind]) for kind in ordered),
    )


def _of(
    broken: Iterable[PlacedGate], gates: Iterable[GateResult], taken: set[int]
) -> list[PlacedGate]:
    """Those of the broken gates, each one once."""
    wanted = {id(gate) for gate in gates}
    found = [x for x in broken if id(x.gate) in wanted and x.place not in taken]
    taken |= {each.place for each in found}
    return found


def _held(kind: str, gates: list[PlacedGate]) -> HeldGates:
    shares = [
        share
        for each in gates
        if each.gate.measured is not None
        and (limit := limit_of(each.gate))
        and (share := _taken(each.gate.metric, each.gate.measured, limit)) is not None
    ]
    return HeldGates(
        kind=kind,
        gates=tuple(gates),
        limited=sum(each.gate.limit != ONLY_MEASURED for each in gates),
        closest=max(shares, default=None),
    )


def _taken(metric: str, measured: float, limit: float) -> float | None:
    """The share of a limit that is taken; a perplexity over the checkpoint's begins at 1."""
    if not metric.endswith(".perplexity"):
        return measured / limit
    return max(measured - 1.0, 0.0) / (limit - 1.0) if limit > 1.0 else None
