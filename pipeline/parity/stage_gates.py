"""The gate that holds every graph of a chain to what its arithmetic allows, stage by stage.

Pure. It is what finds a fault where it was made: after quantisation the same fault would drown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.parity.gates import DEFAULT_COMPONENT
from pipeline.parity.tolerances import TOLERANCES, floor_value
from pipeline.parity.types import GateResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import Metrics, NoiseFloor, OutputParity, Parity

GATE = "stages"


def noise_of(metrics: Metrics, unit: float) -> float | None:
    """RMSE over the root mean square of the output over all samples; None when it is no number."""
    if metrics.rmse is None or metrics.non_finite:
        return None
    if metrics.rmse == 0.0:
        return 0.0
    return metrics.rmse / unit if unit > 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGraph:
    """Which graph of a chain is judged.

    Attributes:
        target: The target's name.
        component: The model component.
        stage: Name of the stage that made the graph.
        node: Name of the node that made it.
        arithmetic: What the graph computes with.
        is_proxy: The graph stands in for an engine.
    """

    target: str
    component: str
    stage: str
    node: str
    arithmetic: Arithmetic
    is_proxy: bool


def judge_stage(
    graph: JudgedGraph,
    parity: Parity,
    floors: Mapping[str, NoiseFloor],
    own_limit: float | None,
) -> tuple[GateResult, ...]:
    """Judge one graph of a chain, each output over samples and probes.

    Args:
        graph: Which one.
        parity: Its comparison with the checkpoint.
        floors: Output -> its noise floor; of an output that is not there nothing is known.
        own_limit: The recipe's limit in place of the table's; None when it names none.
    """
    results = []
    if parity.problems:
        count = len(parity.problems)
        results.append(
            _result(graph, "problems", float(count), "<= 0", "; ".join(parity.problems))
        )
    tolerance = TOLERANCES[graph.arithmetic]
    for output in parity.outputs:
        metric, floor = f"{output.name}.noise", floors.get(output.name)
        if own_limit is None and floor is None and tolerance.factor is not None:
            why = f"the noise floor of `{output.name}` was not measured"
            results.append(_result(graph, metric, None, "of the noise floor", why))
            continue
        limit = tolerance.limit(floor_value(floor)) if own_limit is None else own_limit
        worst, where = _worst(output, parity, has_probes=tolerance.factor is not None)
        why = ""
        if worst is None:
            why = where
        elif not worst <= limit:
            why = f"{where} is {_times(worst, floor_value(floor))}"
        results.append(_result(graph, metric, worst, f"<= {limit:.3g}", why))
    return tuple(results)


def judge_left_out(graph: JudgedGraph, reason: str, *, is_allowed: bool) -> GateResult:
    """A graph that was not run: no pass, and accepted only where the recipe says so.

    Args:
        graph: Which one.
        reason: What the build says of it.
        is_allowed: Whether the recipe that is judged by leaves it out too.
    """
    why = "" if is_allowed else f"; now `gates.{GATE}` does not leave `{graph.stage}` out"
    return _result(graph, "noise", None, "of the noise floor", "").model_copy(
        update={"verdict": "not_run", "reason": f"{reason}{why}", "is_allowed": is_allowed}
    )


def _result(
    graph: JudgedGraph, metric: str, measured: float | None, limit: str, reason: str
) -> GateResult:
    """It failed when there is a reason why."""
    prefix = "" if graph.component == DEFAULT_COMPONENT else f"{graph.component}."
    return GateResult(
        gate=GATE,
        target=graph.target,
        metric=f"{prefix}{graph.stage}.{metric}",
        measured=measured,
        limit=limit,
        verdict="failed" if reason else "passed",
        reason=reason,
        is_allowed=not reason,
        is_proxy=graph.is_proxy,
        node=graph.node,
    )


def _times(worst: float, floor: float) -> str:
    if floor <= 0.0:
        return f"{worst:.3g} of the output's size away from the checkpoint"
    return f"{worst / floor:,.0f} times as far from the checkpoint as float32 is from float64"


def _worst(output: OutputParity, parity: Parity, *, has_probes: bool) -> tuple[float | None, str]:
    """Largest noise, and of what; None with the reason when something cannot be compared.

    Ranges of 8 bits are made for data. What they do to a probe, which is like no data, is measured,
    and judged only for being finite (`Parity.problems`).
    """
    unit = output.metrics.reference_rms or _unit(output)
    worst, where = 0.0, "no sample"
    seen = 0
    for name, metrics in _all_metrics(output, parity, has_probes=has_probes):
        noise = noise_of(metrics, unit)
        if noise is None:
            return None, f"{name} gives no finite number that can be compared"
        seen += 1
        if noise >= worst:
            worst, where = noise, name
    return (worst, where) if seen else (None, "nothing was compared")


def _unit(output: OutputParity) -> float:
    """The output's size from the samples that are finite, when one that is not spoils the whole."""
    squares = [
        (sample.metrics.reference_rms**2, sample.metrics.elements)
        for sample in output.samples
        if sample.metrics.reference_rms is not None
    ]
    elements = sum(count for _, count in squares)
    return math.sqrt(sum(s * n for s, n in squares) / elements) if elements else 0.0


def _all_metrics(
    output: OutputParity, parity: Parity, *, has_probes: bool
) -> Iterator[tuple[str, Metrics]]:
    for sample in output.samples:
        yield f"sample {sample.index}", sample.metrics
    for probe in parity.probes if has_probes else ():
        if probe.output == output.name and probe.metrics is not None:
            yield f"probe {probe.index} ({probe.kind.replace('_', ' ')})", probe.metrics
