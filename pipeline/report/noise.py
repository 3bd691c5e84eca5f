"""How far each stage's graph is from the checkpoint, in the unit in which it is judged: noise.

*Noise* is the RMSE of a sample's output over the output's root mean square over all samples
(`pipeline.parity.tolerances`); of a stage the largest counts, over samples and probes. The limits are
those that the gates had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.parity.gates import DEFAULT_COMPONENT
from pipeline.parity.stage_gates import GATE, noise_of
from pipeline.report.printable import printable_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.parity.types import GateResult, Metrics, OutputParity, Parity
    from pipeline.report.schema import Report, StageParity, TargetReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNoise:
    """One output of one graph of a target's chain.

    Attributes:
        link: The graph's place in the chain, from 0.
        node, stage, component, output: Names, fit to be shown.
        arithmetic: What the graph computes with; empty when it is not recorded.
        floor: What the checkpoint does to itself; None when it was not measured.
        noise: The largest of all samples and probes; None when a number is missing.
        limit: What the gate allows; None when there is no gate, or no number in it.
        worst: Of what the noise is: `sample 12`, `probe 3 (left padding)`.
        sample: The index of that sample; None for a probe.
        gate: The gate's place in the report, from 0; None when there is none.
        holds: Whether the gate holds; True when there is none.
    """

    link: int
    node: str
    stage: str
    component: str
    output: str
    arithmetic: str
    floor: float | None
    noise: float | None
    limit: float | None
    worst: str
    sample: int | None
    gate: int | None
    holds: bool

    @property
    def share(self) -> float | None:
        """Noise over limit; beyond 1 it fails."""
        return _over(self.noise, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCell:
    """The probes of one kind on one graph: the one that is farthest from the checkpoint.

    Attributes:
        noise: None when nothing could be compared: the checkpoint gives no finite number either, or
            only that is asked for.
        share: Over the limit of the graph's gate; None when there is none.
        output: Of which output.
    """

    noise: float | None
    share: float | None
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow:
    """The probes of one kind, with a cell for each graph; None where it was not probed."""

    kind: str
    text: str
    cells: tuple[ProbeCell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTable:
    """All probes on all graphs; a graph that several targets share stands there once."""

    nodes: tuple[str, ...]
    rows: tuple[ProbeRow, ...]


def limit_of(gate: GateResult) -> float | None:
    """The number in `<= 1.2e-05`; None when a limit is none, or one from below."""
    sign, _, number = gate.limit.partition(" ")
    try:
        value = float(number)
    except ValueError:
        return None
    return value if sign == "<=" and math.isfinite(value) else None


def stage_noises(report: Report) -> tuple[tuple[StageNoise, ...], ...]:
    """For each target every output of every graph of its chain; empty where noise is not known.

    Args:
        report: As it was recorded: `printable` leaves single samples out.
    """
    return tuple(tuple(_of_target(report, target)) for target in report.targets)


def _of_target(report: Report, target: TargetReport) -> Iterator[StageNoise]:
    floors = {
        (floor.component, floor.output): max(floor.float64, floor.threads)
        for floor in report.noise_floors
    }
    gates = _gates(report)
    for place, link in enumerate(target.parity):
        for output in link.parity.outputs if link.parity else ():
            index = gates.get((target.name, link.node, _metric(link, output)))
            judged = None if link.arithmetic == "quantized" else link.parity
            noise, worst, sample = _worst(output, judged)
            if noise is None and index is None:
                continue
            gate = None if index is None else report.gates[index]
            yield StageNoise(
                link=place,
                node=printable_text(link.node),
                stage=printable_text(link.stage),
                component=printable_text(link.component),
                output=printable_text(output.name),
                arithmetic=link.arithmetic or "",
                floor=floors.get((link.component, output.name)),
                noise=noise,
                limit=None if gate is None else limit_of(gate),
                worst=worst,
                sample=sample,
                gate=index,
                holds=gate is None or gate.is_allowed,
            )


def _gates(report: Report) -> dict[tuple[str, str, str], int]:
    """(target, node, metric) -> place of the gate of a stage."""
    return {
        (gate.target, gate.node, gate.metric): place
        for place, gate in enumerate(report.gates)
        if gate.gate == GATE
    }


def _metric(link: StageParity, output: OutputParity) -> str:
    prefix = "" if link.component == DEFAULT_COMPONENT else f"{link.component}."
    return f"{prefix}{link.stage}.{output.name}.noise"


def _worst(output: OutputParity, parity: Parity | None) -> tuple[float | None, str, int | None]:
    """The largest noise, of what it is, and of which sample; None when a number is missing.

    Without `parity` the probes are left out, as the gate does for 8 bits.
    """
    unit = _unit(output)
    noise, worst, index = None, "", None
    for sample in output.samples:
        now = noise_of(sample.metrics, unit)
        if now is None:
            return None, f"sample {sample.index}", sample.index
        if noise is None or now > noise:
            noise, worst, index = now, f"sample {sample.index}", sample.index
    for probe in parity.probes if parity else ():
        if probe.output != output.name or probe.metrics is None:
            continue
        now = noise_of(probe.metrics, unit)
        name = f"probe {probe.index} ({printable_text(probe.kind.replace('_', ' '))})"
        if now is None:
            return None, name, None
        if noise is None or now > noise:
            noise, worst, index = now, name, None
    return noise, worst, index


def _unit(output: OutputParity) -> float:
    """The output's size over all samples; from those that are finite, when one is not."""
    if output.metrics.reference_rms:
        return output.metrics.reference_rms
    known = [
        (sample.metrics.reference_rms**2, sample.metrics.elements)
        for sample in output.samples
        if sample.metrics.reference_rms is not None
    ]
    elements = sum(count for _, count in known)
    return math.sqrt(sum(square * n for square, n in known) / elements) if elements else 0.0


def probe_table(report: Report) -> ProbeTable | None:
    """The probes of the report, as it was recorded; None when there are none."""
    links = {
        link.node: (target, link)
        for target in reversed(report.targets)
        for link in reversed(target.parity)
        if link.parity and link.parity.probes
    }
    nodes = [
        node
        for node in dict.fromkeys(link.node for t in report.targets for link in t.parity)
        if node in links
    ]
    if not nodes:
        return None
    gates = _gates(report)
    cells: dict[tuple[str, str], ProbeCell] = {}
    texts: dict[str, str] = {}
    for node in nodes:
        target, link = links[node]
        limits = {
            output.name: limit_of(report.gates[index])
            for output in (link.parity.outputs if link.parity else ())
            if (index := gates.get((target.name, node, _metric(link, output)))) is not None
        }
        for kind, cell, text in _cells(link, limits):
            texts.setdefault(kind, text)
            before = cells.get((kind, node))
            cells[kind, node] = cell if before is None else max(before, cell, key=_badness)
    return ProbeTable(
        nodes=tuple(map(printable_text, nodes)),
        rows=tuple(
            ProbeRow(
                kind=printable_text(kind.replace("_", " ")),
                text=printable_text(text),
                cells=tuple(cells.get((kind, node)) for node in nodes),
            )
            for kind, text in texts.items()
        ),
    )


def _cells(
    link: StageParity, limits: dict[str, float | None]
) -> Iterator[tuple[str, ProbeCell, str]]:
    """(kind, cell, text) of each output of each probe."""
    assert link.parity is not None
    units = {output.name: _unit(output) for output in link.parity.outputs}
    for probe in link.parity.probes:
        noise = _noise(probe.metrics, units.get(probe.output, 0.0))
        share = _over(noise, limits.get(probe.output))
        cell = ProbeCell(noise=noise, share=share, output=printable_text(probe.output))
        yield probe.kind, cell, probe.text


def _noise(metrics: Metrics | None, unit: float) -> float | None:
    """Noise; infinite when the graph gives no finite number where the checkpoint does."""
    if metrics is None:
        return None
    found = noise_of(metrics, unit)
    return math.inf if found is None else found


def _badness(cell: ProbeCell) -> tuple[float, float]:
    return (
        -1.0 if cell.share is None else cell.share,
        -1.0 if cell.noise is None else cell.noise,
    )


def _over(noise: float | None, limit: float | None) -> float | None:
    return noise / limit if noise is not None and limit else None


def known_noises(tables: Iterable[Iterable[StageNoise]]) -> Iterator[float]:
    """Every number that a chart of noise must have room for."""
    for table in tables:
        for row in table:
            for value in (row.noise, row.limit, row.floor):
                if value is not None:
                    yield value
