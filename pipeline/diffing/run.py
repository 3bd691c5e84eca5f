"""Compare two artifacts: read both, run both, hold them against thresholds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.diffing.collect import require_same_model, side, target_changes, text_changes
from pipeline.diffing.measure import MARGIN, compare_outputs, compare_speed
from pipeline.diffing.thresholds import Thresholds
from pipeline.diffing.types import Change, Difference, TargetChange
from pipeline.environment import cores
from pipeline.errors import ArtifactError, PipelineError
from pipeline.report import load_report
from pipeline.stages.base import MODEL_FILE
from pipeline.stages.benchmark import BenchmarkConfig
from pipeline.tasks import find_task
from pipeline.verification import verify_published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.report.schema import Report
    from pipeline.store import Store

UNCOMPARED_ENVIRONMENT = frozenset({"hostname"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """How to compare.

    Attributes:
        targets: Only these; empty: all.
        has_speed: Measure speed too, which takes minutes.
        launches: Fresh processes for each target.
        thresholds: What the new artifact may lose.
        progress: Is told (done, total, what).
    """

    targets: tuple[str, ...] = ()
    has_speed: bool = True
    launches: int = 3
    thresholds: Thresholds = field(default_factory=Thresholds)
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None


def compare_artifacts(old: Path, new: Path, store: Store, options: DiffOptions) -> Difference:
    """Compare two artifacts of one model.

    Both are verified first: nothing that was changed since it was published is run.

    Args:
        old: Directory of the old artifact.
        new: Of the new one.
        store: Where the samples of the new one's build are looked for.
        options: How to compare.

    Raises:
        RecipeError: the two are not of one model, or a target is in neither.
        ArtifactError: one of them is damaged.
    """
    for home in (old, new):
        problems = verify_published(home).problems
        if problems:
            raise ArtifactError(
                f"it is not what was published: {problems[0]}",
                where=str(home),
                hint="convert verify names everything that is wrong",
            )
    before, after = load_report(old / "report.json"), load_report(new / "report.json")
    require_same_model(before, after, old, new)
    notes: list[str] = []
    samples = _samples(after, store)
    if samples is None:
        notes.append(
            "nothing was run: the samples of the new artifact's build are no longer in the store; "
            "run `convert` with its recipe again, or name its store with --store"
        )
    targets = []
    for change in target_changes(before, after, old, new):
        if options.targets and change.name not in options.targets:
            continue
        targets.append(_measured(change, after, old, new, samples, options))
    _require_known(options, before, after)
    found = Difference(
        old=side(old, before),
        new=side(new, after),
        targets=tuple(targets),
        recipe=tuple(text_changes(before.recipe, after.recipe)),
        versions=tuple(_environment_changes(before, after)),
        source=tuple(text_changes(before.source["files"], after.source["files"])),
        notes=tuple(notes),
    )
    return found.model_copy(update={"crossed": options.thresholds.crossed(found)})


def _require_known(options: DiffOptions, *reports: Report) -> None:
    from pipeline.errors import RecipeError

    known = {target.name for report in reports for target in report.targets}
    for name in options.targets:
        if name not in known:
            raise RecipeError(
                f"neither artifact has a target `{name}`",
                hint=f"targets: {', '.join(sorted(known))}",
            )


def _environment_changes(old: Report, new: Report) -> Iterator[Change]:
    for change in text_changes(old.environment, new.environment):
        if change.name not in UNCOMPARED_ENVIRONMENT:
            yield change


def _samples(report: Report, store: Store) -> Path | None:
    """The evaluation samples of a build, when the store still has them."""
    node = next((node for node in report.nodes if node.name == "samples"), None)
    record = store.find(node.key) if node is not None and node.key else None
    return None if record is None else store.open_tree(record.tree)


def _measured(
    change: TargetChange,
    report: Report,
    old: Path,
    new: Path,
    samples: Path | None,
    options: DiffOptions,
) -> TargetChange:
    """The target with what running both graphs shows."""
    if change.state != "both":
        return change
    target = next(target for target in report.targets if target.name == change.name)
    runnable = [graph for graph in change.graphs if Path(graph.file).name == MODEL_FILE]
    reason = ""
    if target.not_run_reason:
        reason = f"this machine cannot run it: {target.not_run_reason}"
    elif target.engines:
        reason = "engines are not run to be compared"
    elif samples is None:
        reason = "there are no samples to run them on"
    elif not runnable:
        reason = "it has no ONNX graph in both artifacts"
    elif all(graph.is_same_file for graph in runnable):
        reason = "the graphs are the same, byte for byte"
    elif len(runnable) > 1:
        reason = "models of several components are not run"
    if reason or samples is None:
        return change.model_copy(update={"not_run_reason": reason})
    folder = Path(runnable[0].file).parent
    homes = (old / folder, new / folder)
    try:
        distances = compare_outputs(*homes, samples)
        speed = None
        if options.has_speed:
            with tempfile.TemporaryDirectory(prefix="convert-diff-") as scratch:
                speed = compare_speed(
                    *homes,
                    samples,
                    _benchmark_config(report, options.launches),
                    scratch=Path(scratch),
                    progress=lambda done, total, _unit: options.progress(done, total, change.name),
                )
    except PipelineError as error:
        return change.model_copy(update={"not_run_reason": error.message})
    reason = "" if options.has_speed else "--no-speed"
    return change.model_copy(
        update={"distances": distances, "speed": speed, "not_run_reason": reason}
    )


def _benchmark_config(report: Report, launches: int) -> BenchmarkConfig:
    """The shapes that the new build measured, or the usual one of its recipe."""
    task = find_task(report.recipe["model"]["task"])
    measured = [t.benchmark for t in report.targets if t.benchmark is not None]
    extents = report.recipe["shapes"]
    usual = tuple(extents[axis]["opt"] for axis in task.axes)
    shapes = tuple(shape.shape for shape in measured[0].shapes) if measured else (usual,)
    return BenchmarkConfig(
        task=task.name,
        component=task.components[0],
        runtime="onnxruntime",
        axes=task.axes,
        shapes=shapes,
        launches=launches,
        threads=cores(),
        margin=MARGIN,
    )
