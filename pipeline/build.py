"""Builds an artifact from a recipe: plan, execute, judge, report, publish.

What was built before is recognised as a whole: when every node is a hit, and the artifact of exactly
these results is there and verifies, nothing is written at all.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundle.transformers_export import write_export_files
from pipeline.checks.catalogue import CHECKS
from pipeline.digest_memory import DigestMemory
from pipeline.environment import code_digest, cores, installed_onnxruntime
from pipeline.errors import ArtifactError, PipelineError
from pipeline.hashing import tagged_digest
from pipeline.planning import build_plan, plan_status
from pipeline.planning.foreseen import foreseen
from pipeline.publish import (
    AlreadyPublished,
    artifact_directory,
    draft_artifact,
    drop_failures,
    fill_draft,
    point_latest,
    publish_draft,
    read_manifest,
    require_place,
    verify_artifact,
)
from pipeline.recipe import dump_recipe
from pipeline.resolving import resolve_plan
from pipeline.run.outcomes import NodeOutcome
from pipeline.source import fetch_source
from pipeline.store import Store, resolve_store_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.planning import NodeStatus, Plan
    from pipeline.publish import EarlyCheck
    from pipeline.recipe import LoadedRecipe
    from pipeline.report.schema import Report
    from pipeline.run.events import Listener

JUDGE = "pipeline.judging"
"""Module that comes to the verdict: what is written there, and in what it uses, is in the digest."""

VERSION_DIGITS = 12
"""Hex digits of the build digest in a version's name; the manifest has it in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build; none of it can change what comes out.

    Attributes:
        output: Where artifacts go.
        store: Root of the store; None: `$CONVERT_STORE`, or the user's cache directory.
        is_store_trusted: Skip verifying digests of stored results.
        must_rehash: Ignore the memory of source digests.
        jobs: Stages at the same time; None: two, or one on a single core.
        threads: Threads of a stage; None: all cores.
        has_forecast: Refuse to start when memory or disk will not do.
    """

    output: Path = Path("artifacts")
    store: Path | None = None
    is_store_trusted: bool = False
    must_rehash: bool = False
    jobs: int | None = None
    threads: int | None = None
    has_forecast: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What came of a build.

    Attributes:
        verdict: `passed`, `failed` (a gate) or `error` (a stage).
        reasons: What fails the build, a sentence each.
        summary: The report in a few lines of plain text.
        directory: The artifact, or what a failed build left.
        is_up_to_date: It was there before, complete and verified.
        outcomes: How each node came out.
    """

    verdict: str
    reasons: tuple[str, ...]
    summary: str
    directory: Path
    is_up_to_date: bool
    outcomes: tuple[NodeOutcome, ...]

    def report(self) -> Report:
        """The whole report."""
        from pipeline.report import load_report

        return load_report(self.directory / "report.json")


def open_store(options: BuildOptions) -> Store:
    """The store that a build uses."""
    root = options.store or resolve_store_root(os.environ)
    return Store(root, is_trusted=options.is_store_trusted)


def prepare_plan(
    loaded: LoadedRecipe,
    store: Store,
    *,
    must_rehash: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Resolve the checkpoint and the data, and lay out the plan.

    Weights on a hub are not fetched, see `fetch_weights`.

    Args:
        loaded: The recipe with its positions.
        store: Where results are, and what is known of files.
        must_rehash: Ignore the memory of source digests.
        note: Is told, a line at a time, what is fetched, and what will fail whatever is computed.

    Raises:
        RecipeError: what the recipe asks for is impossible.
        EnvironmentMissing: a package is not installed, or a hub cannot be reached.
        ArtifactError: the checkpoint is damaged.
    """
    try:
        return _prepare_plan(loaded, store, must_rehash=must_rehash, note=note)
    except PipelineError as error:
        if loaded.values:  # the position is the same for every recipe of the matrix
            from pipeline.recipe.written import values_text

            first, line_end, rest = error.message.partition("\n")
            of_recipe = f"in recipe `{loaded.recipe.name}`, {values_text(loaded.values)}"
            error.message = f"{first} ({of_recipe}){line_end}{rest}"
        raise


def _prepare_plan(
    loaded: LoadedRecipe, store: Store, *, must_rehash: bool, note: Callable[[str], None]
) -> Plan:
    installed_onnxruntime()
    memory = DigestMemory(store.root / "digests.json", is_fresh=must_rehash)
    plan = resolve_plan(loaded, memory, note=note)
    memory.save()  # a recipe that is refused leaves nothing behind
    for sentence in foreseen(plan):
        note(f"note: {sentence}")
    return plan


def fetch_weights(plan: Plan, store: Store) -> Plan:
    """The plan with every file of its checkpoint on this machine, as executing it needs.

    Raises:
        EnvironmentMissing: a hub cannot be reached, or does not let us in.
        ArtifactError: what came is not what the hub announced.
    """
    if not plan.source.absent:
        return plan
    memory = DigestMemory(store.root / "digests.json")
    source = fetch_source(plan.source, memory)
    memory.save()
    return replace(plan, source=source)


def build(
    loaded: LoadedRecipe,
    options: BuildOptions,
    *,
    listener: Listener = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_log: Callable[[int, str], None] | None = None,
    early_check: EarlyCheck | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> BuildResult:
    """Build what a recipe asks for, and publish it when it holds its gates.

    A gate or a stage that fails does not raise: the report says so, and stands under `failed/`.
    What gates say of a graph is explained first: which layer makes the difference.

    Args:
        loaded: The recipe with its positions.
        options: How to build.
        listener: Is told what happens, from several threads.
        on_plan: Is given the plan before it is executed, and after a failure a second one: the same
            with nodes that explain it behind all others.
        on_log: Is given (node, line) for every line of a stage's log.
        early_check: A verification of the published artifact that was begun already.
        note: Is told, a line at a time, what is fetched from a hub.

    Raises:
        RecipeError, EnvironmentMissing, ArtifactError: before or instead of a report.
        KeyboardInterrupt: the store is left consistent.
    """
    store = open_store(options)
    plan = prepare_plan(loaded, store, must_rehash=options.must_rehash, note=note)
    on_plan(plan)
    check = verify_artifact if early_check is None else early_check.problems_of
    statuses = plan_status(plan, store)
    outcomes = _hits(statuses)
    if outcomes is not None:
        found = _find_published(plan, options.output, outcomes, check)
        if found is not None:
            return found
    require_place(options.output / loaded.recipe.name, "--output")
    # An up-to-date run needs neither of these.
    from pipeline.forecast import forecast, require_room
    from pipeline.run.local import LocalExecutor

    plan = fetch_weights(plan, store)  # the forecast reads the headers of weights
    if options.has_forecast:
        require_room(forecast(plan, statuses), store=store.root, output=options.output)

    def execute(plan: Plan) -> tuple[NodeOutcome, ...]:
        executor = LocalExecutor(
            plan=plan,
            store=store,
            listener=listener,
            jobs=options.jobs or min(2, cores()),
            threads=options.threads or cores(),
            on_log=on_log,
        )
        return executor.execute()

    def explain(targets: frozenset[str]) -> Diagnosis:
        return _diagnose(plan, targets, store, options, execute, on_plan)

    outcomes = execute(plan)
    found = _find_published(plan, options.output, outcomes, verify_artifact)
    if found is not None:
        return found
    try:
        return _publish(plan, outcomes, store, loaded, options.output, explain)
    except AlreadyPublished:
        # Another process built the same at the same time; its artifact is as good as ours.
        found = _find_published(plan, options.output, outcomes, verify_artifact)
        if found is None:
            raise
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out about a failure.

    Attributes:
        plan: With nodes that explain it behind all others.
        outcomes: Of all of its nodes.
        problem: Why nothing was found out; empty when it was.
    """

    plan: Plan
    outcomes: tuple[NodeOutcome, ...]
    problem: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all was done that was planned."""
        return not self.problem and all(outcome.record for outcome in self.outcomes)


def _diagnose(
    plan: Plan,
    targets: frozenset[str],
    store: Store,
    options: BuildOptions,
    execute: Callable[[Plan], tuple[NodeOutcome, ...]],
    on_plan: Callable[[Plan], None],
) -> Diagnosis:
    """Run what explains the failure of some targets; whatever prevents it is only told."""
    from pipeline.forecast import forecast, require_room

    try:
        wider = build_plan(
            plan.recipe,
            plan.source,
            plan.data,
            candidates=plan.candidates,
            timing_caches=plan.timing_caches,
            diagnosed=targets,
        )
        if options.has_forecast:
            statuses = plan_status(wider, store)
            require_room(forecast(wider, statuses), store=store.root, output=options.output)
        on_plan(wider)
        return Diagnosis(plan=wider, outcomes=execute(wider))
    except PipelineError as error:
        return Diagnosis(plan=plan, outcomes=(), problem=error.message)


def _hits(statuses: tuple[NodeStatus, ...]) -> tuple[NodeOutcome, ...] | None:
    """The outcomes when every result is there; None when something must run."""
    if any(status.record is None for status in statuses):
        return None
    return tuple(
        NodeOutcome(node=status.node, record=status.record, has_run=False) for status in statuses
    )


def _build_digest(plan: Plan, outcomes: tuple[NodeOutcome, ...]) -> str:
    """Digest of everything that an artifact holds or says, but for times."""
    return tagged_digest(
        "convert/build/1",
        {
            "recipe": dump_recipe(plan.recipe),
            "nodes": {
                outcome.node.name: [outcome.record.key, outcome.record.tree]
                if outcome.record
                else (outcome.failure.message if outcome.failure else "skipped")
                for outcome in outcomes
            },
            "companions": plan.source.group_digest("companions"),
            "revision": plan.source.revision,
            "not_run": {target.name: target.chain.not_run_reason for target in plan.targets},
            "gates": code_digest(JUDGE),
            # What explains a failure follows from all the above and from how it is found out.
            "checks": {check.name: code_digest(check.stage.run.__module__) for check in CHECKS},
        },
    )


def _find_published(
    plan: Plan,
    output: Path,
    outcomes: tuple[NodeOutcome, ...],
    check: Callable[[Path], tuple[str, ...]],
) -> BuildResult | None:
    """The artifact of these outcomes, verified; a damaged one is an error, never overwritten."""
    if any(outcome.record is None for outcome in outcomes):
        return None
    home = output / plan.recipe.name
    digest = _build_digest(plan, outcomes)
    version = digest[:VERSION_DIGITS]
    for has_passed in (True, False):
        directory = artifact_directory(home, version, has_passed=has_passed)
        if not directory.is_dir():
            continue
        problems = check(directory)
        manifest = read_manifest(directory)
        if problems or manifest.get("build_digest") != digest:
            raise ArtifactError(
                "the artifact that was published earlier is not what it was: "
                + (problems[0] if problems else "it is of another build"),
                where=str(directory),
                hint=f"artifacts are never overwritten; look at it, then move it away: "
                f"mv {directory} {directory}.damaged",
            )
        if has_passed:
            point_latest(directory)
        return BuildResult(
            verdict=manifest["verdict"],
            reasons=tuple(manifest["reasons"]),
            summary=manifest["summary"],
            directory=directory,
            is_up_to_date=True,
            outcomes=outcomes,
        )
    return None


def _publish(
    plan: Plan,
    outcomes: tuple[NodeOutcome, ...],
    store: Store,
    loaded: LoadedRecipe,
    output: Path,
    explain: Callable[[frozenset[str]], Diagnosis],
) -> BuildResult:
    # All that judges and renders is only needed, and only imported, when something is new.
    from pipeline.assemble import Results, assemble_report, deliverable_files
    from pipeline.attribution import worth_diagnosing
    from pipeline.recipe.places import recipe_places
    from pipeline.report import render_terminal_summary, write_report

    results = Results(plan=plan, outcomes=outcomes, store=store)
    now = datetime.datetime.now(datetime.UTC)
    digest = _build_digest(plan, outcomes)
    version = digest[:VERSION_DIGITS]
    files = deliverable_files(results)
    name = plan.recipe.name
    if any(outcome.record is None for outcome in outcomes):
        version = f"{version}-{now:%Y%m%dT%H%M%S}"  # a failure may come out otherwise next time
    report = assemble_report(
        results, version=version, created_at=now.isoformat(timespec="seconds"), files=files
    )
    # No layer explains why a target is slow, or a file beside it is another.
    if report.verdict == "failed" and (targets := worth_diagnosing(report)):
        diagnosis = explain(targets)
        notes = (f"the failure is not explained further: {diagnosis.problem}",)
        results = (
            replace(results, notes=notes)
            if diagnosis.problem
            else Results(plan=diagnosis.plan, outcomes=diagnosis.outcomes, store=store)
        )
        outcomes = results.outcomes
        if not diagnosis.is_complete:
            version = f"{version}-{now:%Y%m%dT%H%M%S}"
        report = assemble_report(
            results, version=version, created_at=report.created_at, files=files
        )
    has_passed = report.verdict == "passed"
    summary = render_terminal_summary(report)
    with draft_artifact(output, name) as draft:
        fill_draft(draft, files)
        write_export_files(draft, report)
        (draft / "recipe.yaml").write_bytes(loaded.content)
        write_report(report, draft, recipe_places(loaded))
        directory = publish_draft(
            draft,
            artifact_directory(output / name, version, has_passed=has_passed),
            files=files,
            facts={
                "name": name,
                "version": version,
                "build_digest": digest,
                "verdict": report.verdict,
                "reasons": list(report.reasons),
                "summary": summary,
                "created_at": report.created_at,
                "recipe": report.recipe,
                "source": report.source,
                "environment": report.environment,
                "stage_keys": {node.name: node.key for node in report.nodes},
            },
        )
    if has_passed:
        point_latest(directory)
    if "-" in version:
        drop_failures(directory, digest[:VERSION_DIGITS])
    return BuildResult(
        verdict=report.verdict,
        reasons=report.reasons,
        summary=summary,
        directory=directory,
        is_up_to_date=False,
        outcomes=outcomes,
    )
