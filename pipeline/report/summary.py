"""What the report comes to, target by target: the ground that all renderers share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.parity.types import SENSELESS
from pipeline.report import figures
from pipeline.report.writing import writing_nearness, writing_speeds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.bench.types import ShapeResult
    from pipeline.parity.types import GateResult, OutputParity, Quality
    from pipeline.report.schema import NodeReport, Report, StageParity, TargetReport

TargetVerdict = Literal["passed", "partly", "failed", "error"]
"""`partly`: nothing failed, but something was judged by proxy or not run. It is not a pass."""

MAX_NOTES = 4
"""On stages of one target that failed or were skipped."""

VERDICT_WORDS: dict[str, str] = {
    "passed": "passed",
    "partly": "partly checked",
    "failed": "failed",
    "error": "error",
    "not_run": "not run",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCosine:
    """The smallest cosine of a target's delivered graphs, and where it was."""

    value: float
    output: str
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetQuality:
    """How often what is delivered is right.

    Attributes:
        component: Empty when the target has one.
        is_proxy: Another device than the target's gave the answers.
    """

    target: str
    component: str
    quality: Quality
    is_proxy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSummary:
    """One target in one line.

    Attributes:
        files_bytes: Size of all files delivered.
        slowest: The shape with the smallest speedup, which is the one that gates judge.
        writing: How fast it writes, where that was timed; empty elsewhere.
        nearness: Its perplexity beside the checkpoint's; empty where it writes no text.
        notes: Sentences on what is no pass although nothing failed.
    """

    target: TargetReport
    verdict: TargetVerdict
    cosine: WorstCosine | None
    files_bytes: int | None
    slowest: ShapeResult | None
    writing: str
    nearness: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageError:
    """Parity of one output after one stage, with what the stage added.

    Attributes:
        added_relative_l2: Relative L2 minus that after the previous stage of the component that was
            compared; None for the first. Negative when the stage came closer to the reference.
    """

    stage: StageParity
    output: OutputParity
    added_relative_l2: float | None


def is_build_breaking(gate: GateResult) -> bool:
    """Whether this result fails the build: a limit broken, or a check missing and not allowed."""
    return gate.verdict == "failed" or (gate.verdict == "not_run" and not gate.is_allowed)


def broken_gates(report: Report) -> tuple[GateResult, ...]:
    """The gates that fail the build, in the order of the report."""
    return tuple(gate for gate in report.gates if is_build_breaking(gate))


def failed_nodes(report: Report) -> tuple[NodeReport, ...]:
    """The nodes whose stage failed; what was skipped because of them is not in it."""
    return tuple(node for node in report.nodes if node.state == "failed")


def headline(report: Report) -> str:
    """One sentence that says how it went and counts."""
    failed, broken = failed_nodes(report), broken_gates(report)
    total = len(report.gates)
    allowed = [gate for gate in report.gates if gate.verdict == "not_run" and gate.is_allowed]
    # What makes no sense for a graph nobody has to allow.
    senseless = sum(gate.limit == SENSELESS for gate in allowed)
    not_run = len(allowed) - senseless
    parts = []
    if failed:
        parts.append(f"{figures.plural(len(failed), 'stage')} failed")
    if broken:
        verb = "does not hold" if len(broken) == 1 else "do not hold"
        parts.append(f"{len(broken):,} of {figures.plural(total, 'gate')} {verb}")
    if not parts and report.verdict != "passed":
        parts.append("the build did not pass")
    if not parts:
        parts.append(_held(total - len(allowed), total))
    if senseless:
        what = figures.plural(senseless, "gate")
        parts.append(f"{what} {'makes' if senseless == 1 else 'make'} no sense for this graph")
    if not_run:
        what = figures.plural(not_run, "gate")
        parts.append(f"{what} {'was' if not_run == 1 else 'were'} not run, as the recipe allows")
    return "; ".join(parts)


def _held(held: int, total: int) -> str:
    if total == 0:
        return "no gate was judged"
    if held == total:
        return f"all {figures.plural(total, 'gate')} hold" if total > 1 else "the one gate holds"
    return f"{held:,} of {figures.plural(total, 'gate')} {'holds' if held == 1 else 'hold'}"


def shape_heading(report: Report) -> str:
    """What the sizes of the measured shapes are sizes of: `Batch x sequence`."""
    shapes = [s for target in report.targets if target.benchmark for s in target.benchmark.shapes]
    # One task has one set of axes; another one is shown rather than passed over.
    heading = " or ".join(dict.fromkeys(" x ".join(shape.axes) for shape in shapes))
    return heading[:1].upper() + heading[1:]


def place(shape: ShapeResult) -> str:
    """Where a figure was measured, in short: `8 x 64`; one size alone has its name, `batch 8`."""
    return shape.label if len(shape.shape) > 1 else shape.description


def summarise(report: Report) -> tuple[TargetSummary, ...]:
    """Every target in one line, in the order of the recipe."""
    speeds, nearness = writing_speeds(report), writing_nearness(report)
    return tuple(
        _summary(report, target, speeds.get(target.name, ""), nearness.get(target.name, ""))
        for target in report.targets
    )


def _summary(report: Report, target: TargetReport, writing: str, nearness: str) -> TargetSummary:
    shapes = target.benchmark.shapes if target.benchmark else ()
    return TargetSummary(
        target=target,
        verdict=target_verdict(report, target),
        cosine=worst_cosine(target),
        files_bytes=sum(file.size_bytes for file in target.files) if target.files else None,
        slowest=min(shapes, key=lambda shape: shape.speedup) if shapes else None,
        writing=writing,
        nearness=nearness,
        notes=_notes(report, target),
    )


def target_verdict(report: Report, target: TargetReport) -> TargetVerdict:
    """`error` before `failed` before `partly` before `passed`."""
    names = node_names(report, target)
    if any(node.name in names for node in report.nodes if node.state in {"failed", "skipped"}):
        return "error"
    gates = [gate for gate in report.gates if gate.target == target.name]
    if any(is_build_breaking(gate) for gate in gates):
        return "failed"
    unchecked = any(gate.verdict == "not_run" or gate.is_proxy for gate in gates)
    return "partly" if unchecked or target.proxy or target.not_run_reason else "passed"


def node_names(report: Report, target: TargetReport) -> frozenset[str]:
    """Names of the nodes that the target hangs on."""
    if target.nodes:
        return frozenset(target.nodes)
    known = {link.node for link in target.parity} | {engine.node for engine in target.engines}
    known |= {n.name for n in report.nodes if _labelled_target(report, n.name) == target.name}
    inputs = {node.name: node.inputs for node in report.nodes}
    todo = list(known)
    while todo:
        for name in inputs.get(todo.pop(), ()):
            if name not in known:
                known.add(name)
                todo.append(name)
    return frozenset(known)


def _labelled_target(report: Report, node: str) -> str:
    """The target in a node's name: `rtx-fp16` of `engine@rtx-fp16-sm89`; empty for a shared one."""
    label = node.partition("@")[2]
    fitting = [
        target.name
        for target in report.targets
        if label == target.name or label.startswith((f"{target.name}-", f"{target.name}/"))
    ]
    return max(fitting, key=len, default="")


def delivered(target: TargetReport) -> tuple[StageParity, ...]:
    """The last link of each component's chain: what gates judge."""
    return tuple({link.component: link for link in target.parity}.values())


def worst_cosine(target: TargetReport) -> WorstCosine | None:
    """The smallest cosine over the outputs of what is delivered; None when none was measured."""
    found = [
        WorstCosine(value=value, output=output.name, stage=link.stage)
        for link in delivered(target)
        if link.parity is not None
        for output in link.parity.outputs
        if (value := output.metrics.cosine_similarity) is not None and math.isfinite(value)
    ]
    return min(found, key=lambda worst: worst.value) if found else None


def qualities(report: Report) -> tuple[TargetQuality, ...]:
    """Right answers of every target that was asked samples with a label."""
    return tuple(
        TargetQuality(
            target=target.name,
            component=link.component if len(delivered(target)) > 1 else "",
            quality=quality,
            is_proxy=bool(target.proxy),
        )
        for target in report.targets
        for link in delivered(target)
        if link.parity is not None
        for quality in link.parity.figures()
    )


def _notes(report: Report, target: TargetReport) -> tuple[str, ...]:
    names = node_names(report, target)
    notes = [
        f"stage {node.name} {'failed' if node.state == 'failed' else 'was skipped'}"
        for node in report.nodes
        if node.name in names and node.state in {"failed", "skipped"}
    ][:MAX_NOTES]
    broken = [g.metric for g in report.gates if g.target == target.name and is_build_breaking(g)]
    if broken:
        notes.append(f"{figures.plural(len(broken), 'gate')} broken: {', '.join(broken[:3])}")
    if target.proxy:
        notes.append(f"parity by proxy: {target.proxy} ran the graph in the device's place")
    unchecked = [
        (gate.gate.replace("_", " "), gate.reason)
        for gate in report.gates
        if gate.target == target.name and gate.verdict == "not_run"
    ]
    for reason in dict.fromkeys(reason for _, reason in unchecked):
        gates = dict.fromkeys(gate for gate, of in unchecked if of == reason)
        notes.append(f"{' and '.join(gates)} not run, because {reason or 'of an unknown reason'}")
    if target.not_run_reason and not unchecked:
        notes.append(f"not run here, because {target.not_run_reason}")
    return tuple(notes)


def stage_errors(target: TargetReport) -> tuple[StageError, ...]:
    """Parity of every output after every stage that was compared, in the order of the chain."""
    before: dict[tuple[str, str], float] = {}
    found = []
    for link in target.parity:
        for output in link.parity.outputs if link.parity else ():
            now, key = output.metrics.relative_l2, (link.component, output.name)
            added = now - before[key] if now is not None and key in before else None
            if now is not None:
                before[key] = now
            found.append(StageError(stage=link, output=output, added_relative_l2=added))
    return tuple(found)


def is_ranked(report: Report) -> bool:
    """Whether top-1 agreement was measured anywhere."""
    return any(
        error.output.metrics.top1_agreement is not None
        for target in report.targets
        for error in stage_errors(target)
    )


def blame(report: Report, gate: GateResult) -> str:
    """Which stage brought most of the error that a parity gate found; empty when unknown.

    The share is of the relative L2 after the last stage, of the output that the gate names, or of
    the last one compared when it names none.
    """
    target = next((target for target in report.targets if target.name == gate.target), None)
    if gate.gate != "parity" or target is None:
        return ""
    errors = stage_errors(target)
    named = [error for error in errors if gate.metric.startswith(f"{error.output.name}.")]
    kept = [e for e in errors if e.output.name == (named or errors)[-1].output.name]
    steps = [(added, e.stage.node) for e in kept if (added := _added(e)) is not None]
    total = kept[-1].output.metrics.relative_l2 if kept else None
    if len(steps) < 2 or total is None or not 0 < total < math.inf:
        return ""
    most, node = max(steps)
    share = min(most / total, 1.0)
    return f"{node} brought {figures.percent(share)} of the error" if share > 0.5 else ""


def _added(error: StageError) -> float | None:
    """What a stage added; the first one added all that there was after it."""
    if error.added_relative_l2 is not None:
        return error.added_relative_l2
    return error.output.metrics.relative_l2


def problems(links: Iterable[StageParity]) -> tuple[str, ...]:
    """Sentences of the comparison that make a graph wrong whatever the limits are."""
    return tuple(
        f"{link.node}: {problem}"
        for link in links
        if link.parity is not None
        for problem in link.parity.problems
    )
