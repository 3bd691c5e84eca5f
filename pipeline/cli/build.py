"""`convert RECIPE` (or `convert run RECIPE`): build, verify, publish."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.github import github_option, tell_github
from pipeline.cli.options import (
    json_option,
    recipe_argument,
    store_options,
    variables_option,
)
from pipeline.cli.output import emit, say
from pipeline.errors import ExitCode

if TYPE_CHECKING:
    from pipeline.build import BuildOptions, BuildResult
    from pipeline.cli.progress import Progress
    from pipeline.planning import Plan
    from pipeline.publish import EarlyCheck
    from pipeline.recipe import LoadedRecipe

EXIT_CODES = {
    "passed": ExitCode.OK,
    "failed": ExitCode.GATE_FAILED,
    "error": ExitCode.STAGE_FAILED,
}


@click.command("run")
@recipe_argument
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    help="Where artifacts go.",
)
@click.option("--jobs", type=click.IntRange(1), help="Stages at the same time; default 2.")
@click.option("--threads", type=click.IntRange(1), help="Threads of a stage; default all cores.")
@click.option(
    "--no-forecast",
    is_flag=True,
    help="Start even when memory or disk is forecast not to do.",
)
@variables_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Only errors and the verdict.")
@click.option("-v", "--verbose", is_flag=True, help="Also every line that a stage logs.")
@github_option
@store_options
def build_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    recipe: Path,
    output: Path,
    jobs: int | None,
    threads: int | None,
    no_forecast: bool,
    variables: dict[str, str],
    is_json: bool,
    quiet: bool,
    verbose: bool,
    is_github: bool | None,
    store: Path | None,
    is_store_trusted: bool,
    must_rehash: bool,
) -> int:
    """Build what RECIPE asks for, verify it, and publish it when it holds its gates.

    \b
    Examples:
      convert recipe.yaml
      convert recipe.yaml --output /srv/models --json > result.json
      convert recipe.yaml --var length=256
      python -m pipeline recipe.yaml          # where another `convert` is on the PATH
    """  # noqa: D301 - \b is click's own
    from pipeline.publish import EarlyCheck
    from pipeline.recipe import load_recipes

    loaded = load_recipes(recipe, variables)
    # Verifies while the rest is still being imported.
    early_check = EarlyCheck(output, loaded[0].recipe.name) if len(loaded) == 1 else None
    from pipeline.build import BuildOptions

    options = BuildOptions(
        output=output,
        store=store,
        is_store_trusted=is_store_trusted,
        must_rehash=must_rehash,
        jobs=jobs,
        threads=threads,
        has_forecast=not no_forecast,
    )
    shown = Shown(is_quiet=quiet, is_verbose=verbose, is_github=is_github)
    if len(loaded) > 1:
        from pipeline.cli.build_several import build_several

        return build_several(loaded, options, shown, is_json=is_json)
    result = build_one(loaded[0], options, shown, early_check)
    if is_json:
        emit(json.dumps(result_document(result), indent=2))
    print_summary(result, is_quiet=quiet)
    tell_github(result.report, loaded[0], is_github=is_github)
    return int(EXIT_CODES[result.verdict])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How much is shown while building; `is_github` as `pipeline.cli.github` has it."""

    is_quiet: bool
    is_verbose: bool
    is_github: bool | None = None


def build_one(
    loaded: LoadedRecipe,
    options: BuildOptions,
    shown: Shown,
    early_check: EarlyCheck | None = None,
) -> BuildResult:
    """Build one recipe and show what happens.

    Raises:
        PipelineError: as `pipeline.build.build`.
    """
    from pipeline.build import build
    from pipeline.cli.progress import make_progress

    with make_progress(is_quiet=shown.is_quiet, is_verbose=shown.is_verbose) as progress:
        return build(
            loaded,
            options,
            listener=progress.listen,
            on_plan=lambda plan: begin(plan, progress),
            on_log=progress.log if shown.is_verbose else None,
            early_check=early_check,
            note=(lambda _: None) if shown.is_quiet else say,
        )


def begin(plan: Plan, progress: Progress) -> None:
    """Say what must be known of the checkpoint, even to those who asked for quiet."""
    is_second = any(node.is_diagnosis for node in plan.nodes)
    for line in () if is_second else plan.source.notes:
        say(f"note: {line}")
    progress.begin(plan)


def print_summary(result: BuildResult, *, is_quiet: bool) -> None:
    """The verdict and where the report is, on standard error."""
    if is_quiet:
        click.echo(f"{result.verdict}: {result.directory}", err=True)
        for reason in result.reasons:
            click.echo(f"  {reason}", err=True)
        failures = [outcome.failure for outcome in result.outcomes]
        # Stages that read the same checkpoint fail for the same reason.
        for hint in dict.fromkeys(each.hint for each in failures if each is not None):
            if hint:
                click.echo(f"  hint: {hint}", err=True)
        return
    if not any(outcome.has_run for outcome in result.outcomes):
        click.echo(f"all {len(result.outcomes)} results were in the store", err=True)
    click.echo(result.summary.rstrip(), err=True)
    for outcome in result.outcomes:
        if outcome.failure is None:
            continue
        click.echo(f"\n`{outcome.node.name}` failed: {outcome.failure.sentence}", err=True)
        for line in outcome.failure.last_lines[-10:]:
            click.echo(f"  | {line}", err=True)
        if outcome.failure.hint:
            click.echo(f"\nhint: {outcome.failure.hint}", err=True)
    state = "up to date" if result.is_up_to_date else "written"
    click.echo(f"\nartifact ({state}): {result.directory}", err=True)
    click.echo(f"report: {result.directory / 'report.html'}", err=True)


def result_document(result: BuildResult) -> dict[str, object]:
    """What `--json` says of a build."""
    return {
        "verdict": result.verdict,
        "exit_code": int(EXIT_CODES[result.verdict]),
        "artifact": str(result.directory.resolve()),
        "is_up_to_date": result.is_up_to_date,
        "report": result.report().model_dump(mode="json"),
    }
