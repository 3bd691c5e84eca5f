"""Judges a report: its own records against a recipe's gates. Pure; nothing is measured or read here.

A build judges what it has just assembled, and `convert judge` what an artifact has kept: both by
this module, so that the same numbers and limits always come to the same verdict.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.attribution import findings
from pipeline.checks.base import Measured
from pipeline.checks.catalogue import find_check
from pipeline.errors import RecipeError
from pipeline.parity.gates import (
    judge_coverage,
    judge_device_parity,
    judge_parity,
    judge_quality,
    judge_speed,
)
from pipeline.parity.quality.names import OF_ANSWERS
from pipeline.parity.stage_gates import JudgedGraph, judge_left_out, judge_stage
from pipeline.parity.types import GateResult
from pipeline.report.summary import delivered, node_names
from pipeline.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from pipeline.parity.types import NoiseFloor
    from pipeline.recipe.types import Gates
    from pipeline.report.schema import NodeReport, Report, TargetReport

BENCHMARKS = frozenset({"benchmark", "benchmark_engine", "benchmark_provider"})
"""Names of the stages that time a target."""
NO_RESULT = frozenset({"failed", "skipped"})
"""States of a node that has no result in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unmeasured:
    """A limit on a number that is not in the report."""

    key_path: tuple[str, ...]
    message: str
    hint: str = "it takes a build: convert RECIPE"


def judged(report: Report, gates: Gates, *, declared: Mapping[str, Collection[str]]) -> Report:
    """The report with its gates judged anew: `gates`, `reasons`, `findings`, `verdict` are replaced.

    A stage that failed stays failed, whatever the limits are, unless it was only to explain. Of the recipe in the report nothing is
    used; the caller says what is judged by.

    Args:
        report: What was measured.
        gates: The limits.
        declared: Stage -> names of the numbers it may report as coverage.
    """
    results = _gate_results(report, gates, declared)
    failures = [
        f"`{node.name}` failed: {node.failure.message}"
        for node in report.nodes
        if node.failure is not None and not node.is_diagnosis
    ]
    broken = [
        f"{gate.target}: {gate.gate} gate: {gate.metric} must be {gate.limit}: {gate.reason}"
        if gate.measured is not None
        else f"{gate.target}: {gate.gate} gate: {gate.reason}"
        for gate in results
        if not gate.is_allowed
    ]
    verdict: Literal["passed", "failed", "error"] = "passed"
    if failures or broken:
        verdict = "error" if failures else "failed"
    return report.model_copy(
        update={
            "gates": results,
            "reasons": (*failures, *broken),
            "verdict": verdict,
            "findings": findings(
                report.targets, results, {node.name: node.facts for node in report.nodes}
            ),
        }
    )


def require_measured(
    report: Report,
    gates: Gates,
    before: Gates,
    *,
    declared: Mapping[str, Collection[str]],
    where: Callable[..., str],
) -> None:
    """Refuse limits on numbers that the report does not have, and that `before` did not limit.

    Limits that were there before are judged as the build judged them.

    Args:
        report: What was measured.
        gates: The limits to judge by.
        before: The limits of the build.
        declared: Stage -> names of the numbers it may report as coverage.
        where: Key path -> place in the recipe.

    Raises:
        RecipeError: a limit needs a build.
    """
    known = {lack.key_path for lack in _unmeasured(report, before, declared)}
    for lack in _unmeasured(report, gates, declared):
        if lack.key_path not in known:
            raise RecipeError(lack.message, where=where(*lack.key_path), hint=lack.hint)


def _gate_results(
    report: Report, gates: Gates, declared: Mapping[str, Collection[str]]
) -> tuple[GateResult, ...]:
    """Judge every target; what has no result was reported as a failure."""
    verdicts: list[GateResult] = []
    nodes = {node.name: node for node in report.nodes}
    for target in report.targets:
        own = gates.of(target.name)
        for last in delivered(target):
            if last.parity is None:
                continue
            verdicts += judge_parity(
                last.parity,
                own.parity,
                target=target.name,
                component=last.component,
                is_proxy=bool(target.proxy),
            )
            if own.quality is not None:
                verdicts += judge_quality(
                    last.parity,
                    own.quality,
                    _own_figure(report),
                    target=target.name,
                    component=last.component,
                    is_proxy=bool(target.proxy),
                )
        verdicts += _stage_results(report, target, own)
        verdicts += _check_results(report, target, own, nodes)
        if target.proxy:
            verdicts += judge_device_parity(
                target=target.name,
                not_run_reason=target.not_run_reason,
                proxy=target.proxy,
                allow_not_run=own.allow_not_run,
            )
        if own.speed is not None and not _has_failed_benchmark(report, target):
            verdicts += judge_speed(
                target.benchmark,
                own.speed,
                target=target.name,
                allow_not_run=own.allow_not_run,
                not_run_reason=target.not_run_reason,
            )
    verdicts += judge_coverage(
        {target.name: _coverage(target, nodes) for target in report.targets},
        gates.coverage,
        unfinished={
            name
            for node in report.nodes
            if node.state in NO_RESULT
            for name in declared.get(node.stage, ())
        },
    )
    return tuple(verdicts)


def _stage_results(report: Report, target: TargetReport, gates: Gates) -> Iterator[GateResult]:
    """Every graph of the chain against what its arithmetic allows."""
    for link in target.parity:
        if link.arithmetic is None or (link.parity is None and not link.is_left_out):
            continue
        own = gates.stages.get(link.stage)
        graph = JudgedGraph(
            target=target.name,
            component=link.component,
            stage=link.stage,
            node=link.node,
            arithmetic=link.arithmetic,
            is_proxy=bool(target.proxy),
        )
        if link.parity is None:
            is_allowed = gates.leaves_out(link.stage)
            yield judge_left_out(graph, link.not_run_reason, is_allowed=is_allowed)
            continue
        floors = _floors(report, link.component)
        yield from judge_stage(graph, link.parity, floors, None if own is None else own.noise)


def _floors(report: Report, component: str) -> dict[str, NoiseFloor]:
    return {floor.output: floor for floor in report.noise_floors if floor.component == component}


def _check_results(
    report: Report, target: TargetReport, gates: Gates, nodes: Mapping[str, NodeReport]
) -> Iterator[GateResult]:
    """What each check found; one that could not be run has failed as a stage."""
    arithmetic = {link.node: link.arithmetic for link in target.parity}
    yield from _left_out_checks(target, gates)
    for entry in target.checks:
        check, limits = find_check(entry.check), getattr(gates.checks, entry.check, None)
        node = nodes[entry.node]
        if check is None or limits is None or node.state in NO_RESULT:
            continue
        measured = Measured(
            target=target.name,
            component=entry.component,
            stage=entry.stage,
            node=entry.of,
            arithmetic=arithmetic.get(entry.of) or "quantized",
            is_proxy=bool(target.proxy),
            facts=node.facts,
            floors=_floors(report, entry.component),
        )
        yield from check.judge(measured, limits)


def _left_out_checks(target: TargetReport, gates: Gates) -> Iterator[GateResult]:
    """Checks that the build did not do: no pass, and accepted where the recipe leaves them out too."""
    for name in target.left_out_checks:
        check = find_check(name)
        if check is None or check.explains:
            continue
        is_allowed = getattr(gates.checks, name) is None
        why = "" if is_allowed else "; now it does not"
        yield GateResult(
            gate=name,
            target=target.name,
            metric=name,
            measured=None,
            limit="what it asks",
            verdict="not_run",
            reason=f"`gates.checks.{name}: null` leaves it out{why}",
            is_allowed=is_allowed,
            is_proxy=bool(target.proxy),
        )


def _has_failed_benchmark(report: Report, target: TargetReport) -> bool:
    names = node_names(report, target)
    return any(
        node.stage in BENCHMARKS and node.name in names and node.state in NO_RESULT
        for node in report.nodes
    )


def _coverage(
    target: TargetReport, nodes: Mapping[str, NodeReport]
) -> dict[str, dict[str, float]]:
    """Node name -> what its stage says of coverage, for the models and engines of a target.

    In the order of the chain; not all nodes that the target hangs on, for those of other chains
    (such as the one that is calibrated) say nothing of this one.
    """
    chain = [link.node for link in target.parity] + [engine.node for engine in target.engines]
    return {
        name: dict(found)
        for name in dict.fromkeys(chain)
        if name in nodes and (found := nodes[name].facts.get("coverage"))
    }


def _unmeasured(
    report: Report, gates: Gates, declared: Mapping[str, Collection[str]]
) -> Iterator[_Unmeasured]:
    """Every limit that has no number in the report."""
    ranked = {target.name for target in report.targets if _is_ranked(target)}
    for target in report.targets:
        limits, name = gates.of(target.name), target.name
        parities = [link.parity for link in delivered(target) if link.parity is not None]
        has_benchmark = target.benchmark is not None or _has_failed_benchmark(report, target)
        if limits.speed is not None and not has_benchmark and not target.not_run_reason:
            yield _Unmeasured(
                key_path=_key_path(gates, name, "speed"),
                message=f"the speed of `{name}` was not measured",
            )
        for metric, key_path in _limited_figures(gates, name, _own_figure(report)):
            if any(parity.figure(metric) is None for parity in parities):
                yield _Unmeasured(
                    key_path=key_path,
                    message=f"`{metric}` of `{name}` was not computed",
                    hint="right answers need evaluation samples with labels, and a build: convert "
                    "RECIPE",
                )
        key_path = _key_path(gates, name, "parity")
        # A limit for all targets is for those whose outputs have classes.
        is_ranked = name in ranked if "targets" in key_path else bool(ranked)
        if limits.parity.top1_agreement is not None and parities and not is_ranked:
            yield _Unmeasured(
                key_path=(*key_path, "top1_agreement"),
                message=f"top1_agreement of `{name}` was not measured: its outputs have no classes",
                hint="limit `cosine_similarity` or `relative_l2` instead",
            )
    stages = {node.stage for node in report.nodes}
    known = sorted({name for stage in stages for name in declared.get(stage, ())})
    for name in gates.coverage:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        only = f", only: {', '.join(known)}" if known else ", or any coverage at all"
        yield _Unmeasured(
            key_path=("gates", "coverage", name),
            message=f"no stage of this artifact reports `{name}`"
            + (f" - did you mean `{near[0]}`?" if near else only),
            hint="",
        )


def _own_figure(report: Report) -> str:
    """Name of the figure that `score` and `drop` of a recipe limit; empty when the task has none."""
    task = find_task(report.recipe["model"]["task"])
    return OF_ANSWERS[task.answer][0] if task.answer is not None else ""


def _limited_figures(
    gates: Gates, target: str, own_figure: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every figure of a target that is limited, and where."""
    quality = gates.of(target).quality
    if quality is None:
        return
    key_path = _key_path(gates, target, "quality")
    if quality.score is not None or quality.drop is not None:
        yield own_figure, key_path
    for metric in quality.metrics:
        yield metric, (*key_path, "metrics", metric)


def _is_ranked(target: TargetReport) -> bool:
    parities = [link.parity for link in delivered(target) if link.parity is not None]
    return any(output.is_ranked for parity in parities for output in parity.outputs)


def _key_path(gates: Gates, target: str, section: str) -> tuple[str, ...]:
    """Where the recipe says the limits of a target: its own section, or that for all."""
    is_own = getattr(gates.targets.get(target), section, None) is not None
    return ("gates", "targets", target, section) if is_own else ("gates", section)
