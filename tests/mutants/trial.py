"""Tries faults, and says what came of each."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.mutants.bench import Bench, Damage
from tests.mutants.models import find_model, plan_model
from tests.mutants.surgery import NotHereError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report
    from tests.mutants.catalogue import Fault


class BadTwinError(Exception):
    """The conversion that is to be damaged does not pass as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one fault in one model.

    Attributes:
        fault, kind, stage, model, target: What was done.
        is_caught: The build did not pass.
        caught_by: Gates that failed, each once, the accusing ones first.
        accused: The stage that the report names; empty when it names none.
        layer: The layer that it names.
        is_attributed: The right stage was named.
        metric, measured, limit: Of the gate that says it best.
        seconds: How long it took.
    """

    fault: str
    kind: str
    stage: str
    model: str
    target: str
    is_caught: bool
    caught_by: tuple[str, ...]
    accused: str
    layer: str
    is_attributed: bool
    metric: str
    measured: float | None
    limit: str
    reason: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def try_fault(bench: Bench, fault: Fault, model: str) -> Outcome | None:
    """Damage a model's conversion, and look what the report says; None when it cannot be damaged so.

    Args:
        bench: Where good results are kept.
        fault: What to damage.
        model: In which model's conversion.

    Raises:
        BadTwinError: when the right conversion does not pass: nothing would be proven.
    """
    target = fault.target_of(model)
    plan = plan_model(find_model(model), [target], bench.recipes, bench.store)
    if (model, target) not in bench.proven:
        twin = bench.good(plan)
        if twin.verdict != "passed":
            raise BadTwinError(f"{model}, {target}: {'; '.join(twin.reasons)}")
        bench.proven.add((model, target))
    started = time.monotonic()
    name = fault.node or next(n.name for n in plan.nodes if n.stage.name == fault.stage)
    damage = Damage(name=fault.name, node=name, apply=fault.apply)
    try:
        report = bench.mutant(plan, damage)
    except NotHereError:
        return None
    return _outcome(report, fault, model, target, time.monotonic() - started)


def try_good(bench: Bench, model: str, targets: Sequence[str], seed: int) -> Report:
    """The report of the right conversion, on the samples of a seed."""
    plan = plan_model(find_model(model), targets, bench.recipes, bench.store, seed=seed)
    return bench.good(plan)


def _outcome(report: Report, fault: Fault, model: str, target: str, seconds: float) -> Outcome:
    finding = next(iter(report.findings), None)
    broken = [gate for gate in report.gates if not gate.is_allowed]
    failures = [node for node in report.nodes if node.failure is not None]
    accused = finding.stage if finding else ""
    mine = [gate for gate in broken if finding and gate.node == finding.node] or broken
    names = [gate.gate for gate in (*mine, *broken)]
    if failures:
        names += [f"{node.stage} fails" for node in failures]
    best = mine[0] if mine else None
    return Outcome(
        fault=fault.name,
        kind=fault.kind,
        stage=fault.stage,
        model=model,
        target=target,
        is_caught=report.verdict != "passed",
        caught_by=tuple(dict.fromkeys(names)),
        accused=finding.node if finding and fault.component else accused,
        layer=finding.layer if finding else "",
        is_attributed=accused in fault.accepts
        and (not fault.component or (finding is not None and finding.node == fault.node)),
        metric=best.metric if best else "",
        measured=best.measured if best else _nearest(report.gates, fault.stage),
        limit=best.limit if best else "",
        reason=best.reason if best else "; ".join(report.reasons[:1]),
        seconds=round(seconds, 1),
    )


def _nearest(gates: Sequence[GateResult], stage: str) -> float | None:
    """Of a fault that was not caught: the noise of the damaged graph."""
    found = [
        gate.measured
        for gate in gates
        if gate.gate == "stages" and gate.metric.startswith(f"{stage}.") and gate.measured
    ]
    return max(found, default=None)


def trials(faults: Sequence[Fault], models: Sequence[str]) -> Iterator[tuple[Fault, str]]:
    """Every fault in every model where it can be made, model by model."""
    for model in models:
        for fault in faults:
            if model in fault.models:
                yield fault, model
