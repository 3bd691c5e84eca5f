"""The gates: measured numbers against the recipe's limits. Pure; nothing is measured here.

Every function returns one `GateResult` for each thing that was judged, passed or not, so that a
report can show what was looked at. What could not be measured is `not_run`, which is not a pass:
`is_allowed` is then True only where the recipe's `allow_not_run` says so. No number compares as
failing by accident: a comparison with NaN is false, and every limit is written so that false fails.
"""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

from pipeline.parity.types import GateResult

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pipeline.bench.types import BenchmarkResult, ShapeResult
    from pipeline.parity.types import Metrics, Parity, Quality
    from pipeline.recipe.types import (
        Bound,
        FigureGates,
        ParityGates,
        QualityGates,
        SpeedGate,
    )

DEFAULT_COMPONENT = "model"
"""Name of the only component of a model that has one; it is left out of metric names."""

WIDEST_SPREAD = 4.0
"""A speed-up's interval whose ends differ by a larger factor judges nothing: torch's threads suffer more
than others from a busy machine, so launches that disagree that much flatter the target. Only a
target that passes the limit by this factor as well is not in doubt."""

OF_VECTORS = frozenset({"cosine_similarity", "cosine_similarity_mean", "top1_agreement"})
"""Metrics that compare vectors; they are there whatever the reference is, if vectors are."""

MOST_LAUNCHES = 50
"""The most that a recipe may ask for in `benchmark.launches`."""


def judge_parity(
    parity: Parity, gates: ParityGates, *, target: str, component: str, is_proxy: bool
) -> tuple[GateResult, ...]:
    """Judge the last graph of a target's chain by its distance to the reference.

    The first result is always there, whatever the recipe limits: it fails when something was wrong
    in kind (`Parity.problems`) or nothing was compared at all.

    Args:
        parity: The comparison.
        gates: The recipe's limits; each one holds for every output.
        target: The target's name.
        component: The model component, such as `model`.
        is_proxy: The graph was run in place of the target (an engine without its GPU).
    """
    prefix = "" if component == DEFAULT_COMPONENT else f"{component}."
    results = [_judge_kind(parity, f"{prefix}problems", target=target, is_proxy=is_proxy)]
    for output in parity.outputs:
        for name in type(gates).model_fields:
            bound: Bound | None = getattr(gates, name)
            if bound is None or (name == "top1_agreement" and not output.is_ranked):
                continue
            measured, reason = _read_metric(output.metrics, name)
            results.append(
                _judge_number(
                    measured,
                    bound,
                    gate="parity",
                    target=target,
                    metric=f"{prefix}{output.name}.{name}",
                    is_proxy=is_proxy,
                    unmeasured=reason,
                )
            )
    return tuple(results)


def judge_device_parity(
    *, target: str, proxy: str, not_run_reason: str, allow_not_run: Sequence[str]
) -> tuple[GateResult, ...]:
    """Say that parity was not measured on the target itself, where it was not.

    Args:
        target: The target's name.
        proxy: What was run in its place, such as `onnxruntime-cpu`; empty when nothing was.
        not_run_reason: Why the target cannot run here; empty when it did.
        allow_not_run: The recipe's `gates.allow_not_run`.

    Returns:
        Nothing when the target itself was compared.
    """
    if not proxy and not not_run_reason:
        return ()
    cause = not_run_reason or "the target was not run on this machine"
    stand_in = f"; {proxy} stood in for it" if proxy else ""
    return (
        _not_run(
            "device_parity",
            target=target,
            metric="outputs",
            limit="the limits of `gates.parity`, on the device",
            reason=f"{cause}{stand_in}",
            allow_not_run=allow_not_run,
        ),
    )


def judge_quality(
    parity: Parity,
    gates: QualityGates,
    own_figure: str,
    *,
    target: str,
    component: str,
    is_proxy: bool,
) -> tuple[GateResult, ...]:
    """Judge how well the last graph of a target's chain does its task.

    Args:
        parity: The comparison, with the figures.
        gates: The recipe's limits.
        own_figure: Name of the task's own figure, which `score` and `drop` are of; empty when the
            task has none.
        target: The target's name.
        component: The model component, such as `model`.
        is_proxy: The graph was run in place of the target (an engine without its GPU).
    """
    prefix = "" if component == DEFAULT_COMPONENT else f"{component}."
    wanted: list[tuple[str, FigureGates]] = [(own_figure, gates), *gates.metrics.items()]
    results = []
    for metric, limits in wanted:
        quality = parity.figure(metric)
        for name, bound in (("score", limits.score), ("drop", limits.drop)):
            if bound is None:
                continue
            result = _judge_number(
                None if quality is None else getattr(quality, name),
                bound,
                gate="quality",
                target=target,
                metric=f"{prefix}{metric or 'quality'}.{name}",
                is_proxy=is_proxy,
                unmeasured=_why_no_figure(metric, parity),
            )
            if name == "drop" and quality is not None and gates.doubt == "passes":
                result = _in_doubt(result, quality)
            results.append(result)
    return tuple(results)


def _why_no_figure(metric: str, parity: Parity) -> str:
    found = ", ".join(quality.metric for quality in parity.figures())
    if found:
        return f"`{metric}` could not be computed from these samples, only: {found}"
    return "no sample of the evaluation data has a label that could be counted"


def _in_doubt(result: GateResult, quality: Quality) -> GateResult:
    """A drop that cannot be told from none is not a finding, and the result says so."""
    low, high = quality.drop_low, quality.drop_high
    if result.verdict != "failed" or low is None or high is None or low > 0.0:
        return result
    return result.model_copy(
        update={
            "verdict": "passed",
            "is_allowed": True,
            "reason": f"more than the limit, but not told from no drop at all with "
            f"{quality.samples:,} samples (95 % confidence: {low:.4f} to {high:.4f})",
        }
    )


def judge_speed(
    benchmark: BenchmarkResult | None,
    gate: SpeedGate,
    *,
    target: str,
    allow_not_run: Sequence[str],
    not_run_reason: str,
) -> tuple[GateResult, ...]:
    """Judge each shape by the low end of its interval, so that luck does not pass.

    A shape passes when the whole 95 % interval of its speed-up lies at or above
    `min_speedup_over_reference * (1 - margin)`.

    Args:
        benchmark: What was measured; None when nothing was.
        gate: The recipe's limit.
        target: The target's name.
        allow_not_run: The recipe's `gates.allow_not_run`.
        not_run_reason: Why the target cannot run here; empty when it can.
    """
    limit = gate.min_speedup_over_reference * (1.0 - gate.margin)
    words = (
        f"speed-up >= {gate.min_speedup_over_reference:g} within {gate.margin:.0%}, "
        f"whole interval >= {limit:.4g}"
    )
    if benchmark is None and not_run_reason:
        return (
            _not_run(
                "speed",
                target=target,
                metric="speedup",
                limit=words,
                reason=not_run_reason,
                allow_not_run=allow_not_run,
            ),
        )
    if benchmark is None or not benchmark.shapes:
        return (
            GateResult(
                gate="speed",
                target=target,
                metric="speedup",
                measured=None,
                limit=words,
                verdict="failed",
                reason="the benchmark gave no result",
                is_allowed=False,
            ),
        )
    return tuple(
        _judge_shape(shape, limit, words, target=target, launches=benchmark.launches)
        for shape in benchmark.shapes
    )


def judge_coverage(
    coverage: Mapping[str, Mapping[str, Mapping[str, float]]],
    bounds: Mapping[str, Bound],
    *,
    unfinished: Collection[str] = (),
) -> tuple[GateResult, ...]:
    """Judge what the stages say they reached, such as the share of quantised weights.

    A name is judged at every node that reports it, and nowhere else: `quantized_weights` says
    nothing about an fp32 target. A name that no node of any target reports fails, because a
    misspelt limit must not be a limit that always holds.

    Args:
        coverage: Target -> node of its chain -> name -> number (the `coverage` of its facts).
        bounds: The recipe's `gates.coverage`.
        unfinished: Names that stages without a result would have reported; that they failed is said
            elsewhere.
    """
    reported = {
        name for nodes in coverage.values() for numbers in nodes.values() for name in numbers
    }
    results = [
        _judge_number(
            numbers[name],
            bound,
            gate="coverage",
            target=target,
            metric=f"{node}.{name}",
            is_proxy=False,
            unmeasured="",
        )
        for name, bound in bounds.items()
        for target, nodes in coverage.items()
        for node, numbers in nodes.items()
        if name in numbers
    ]
    results += [
        GateResult(
            gate="coverage",
            target="",
            metric=name,
            measured=None,
            limit=_describe(bound),
            verdict="failed",
            reason=_unreported(name, reported),
            is_allowed=False,
        )
        for name, bound in bounds.items()
        if name not in reported and name not in unfinished
    ]
    return tuple(results)


def _judge_kind(parity: Parity, metric: str, *, target: str, is_proxy: bool) -> GateResult:
    faults = list(parity.problems)
    if not parity.outputs:
        faults.append("the reference has no outputs, so nothing was compared")
    elif not parity.samples_seen and not faults:
        faults.append("no sample was compared")
    return GateResult(
        gate="parity",
        target=target,
        metric=metric,
        measured=float(len(faults)),
        limit="none",
        verdict="failed" if faults else "passed",
        reason="; ".join(faults),
        is_allowed=not faults,
        is_proxy=is_proxy,
    )


def _read_metric(metrics: Metrics, name: str) -> tuple[float | None, str]:
    """A metric's number, or why there is none."""
    value: float | None = getattr(metrics, name)
    if value is not None:
        return value, ""
    if metrics.non_finite:
        return None, f"{metrics.non_finite} of {metrics.elements} elements are NaN or infinite"
    if not metrics.elements:
        return None, "nothing was compared"
    if name == "sqnr_db" and metrics.max_abs_diff == 0.0:
        # No noise at all: the ratio is infinite, and every lower limit holds.
        return math.inf, ""
    if name in OF_VECTORS:
        return None, (
            "it cannot be computed: the output is one number, which has no angle and no rank; "
            "limit `relative_l2` or `max_abs_diff`"
        )
    return None, "it cannot be computed: the reference is zero everywhere"


def _judge_number(
    measured: float | None,
    bound: Bound,
    *,
    gate: str,
    target: str,
    metric: str,
    is_proxy: bool,
    unmeasured: str,
) -> GateResult:
    if measured is None:
        reason = unmeasured
    elif bound.min is not None and not measured >= bound.min:
        reason = f"{measured:.6g} is below {bound.min:g}"
    elif bound.max is not None and not measured <= bound.max:
        reason = f"{measured:.6g} is above {bound.max:g}"
    else:
        reason = ""
    return GateResult(
        gate=gate,
        target=target,
        metric=metric,
        # JSON has no infinity; the only one that comes here passed (no difference at all).
        measured=measured if measured is not None and math.isfinite(measured) else None,
        limit=_describe(bound),
        verdict="failed" if reason else "passed",
        reason=reason,
        is_allowed=not reason,
        is_proxy=is_proxy,
    )


def _describe(bound: Bound) -> str:
    """A limit in words: `>= 0.99`, or both ends."""
    ends = [f">= {bound.min:g}"] if bound.min is not None else []
    ends += [f"<= {bound.max:g}"] if bound.max is not None else []
    return " and ".join(ends)


def _not_run(
    gate: str, *, target: str, metric: str, limit: str, reason: str, allow_not_run: Sequence[str]
) -> GateResult:
    is_allowed = gate in allow_not_run
    return GateResult(
        gate=gate,
        target=target,
        metric=metric,
        measured=None,
        limit=limit,
        verdict="not_run",
        reason=reason if is_allowed else f"{reason}; `gates.allow_not_run` does not list `{gate}`",
        is_allowed=is_allowed,
    )


def _judge_shape(
    shape: ShapeResult, limit: float, words: str, *, target: str, launches: int
) -> GateResult:
    low, high = shape.speedup_interval.low, shape.speedup_interval.high
    if high > low * WIDEST_SPREAD and low < limit * WIDEST_SPREAD:
        reason = (
            f"inconclusive: the launches disagree {high / low:.0f}-fold ({low:.3g} to {high:.3g}): "
            "the machine is too busy to measure on"
        )
    elif low >= limit:
        reason = ""
    elif high < limit:
        reason = f"slower: speed-up {shape.speedup:.3g}, whole interval {low:.3g} to {high:.3g}"
    else:
        reason = (
            f"inconclusive: speed-up {shape.speedup:.3g}, interval {low:.3g} to {high:.3g} over "
            f"{launches} launches; {_more_launches(shape, limit, launches)}"
        )
    return GateResult(
        gate="speed",
        target=target,
        metric=f"speedup at {shape.description}",
        measured=shape.speedup if math.isfinite(shape.speedup) else None,
        limit=words,
        verdict="failed" if reason else "passed",
        reason=reason,
        is_allowed=not reason,
    )


def _more_launches(shape: ShapeResult, limit: float, launches: int) -> str:
    """What would settle it: an interval's width goes with one over the root of the launches."""
    advice = "more launches (`benchmark.launches`) or a quieter machine narrow the interval"
    low, value = shape.speedup_interval.low, shape.speedup
    if not 0.0 < low < limit < value < math.inf:
        return advice
    needed = math.ceil(launches * (math.log(value / low) / math.log(value / limit)) ** 2)
    return f"{advice}, about {needed} would do" if needed <= MOST_LAUNCHES else advice


def _unreported(name: str, reported: set[str]) -> str:
    if not reported:
        return f"no stage reports `{name}`, or any coverage at all"
    nearest = difflib.get_close_matches(name, sorted(reported), n=1)
    question = f" - did you mean `{nearest[0]}`?" if nearest else ""
    known = ", ".join(f"`{known}`" for known in sorted(reported))
    return f"no stage reports `{name}`; the stages of this recipe report {known}{question}"
