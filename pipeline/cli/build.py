"""`convert RECIPE` (or `convert run RECIPE`): build, verify, publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option, recipe_argument, store_options
from pipeline.cli.output import emit, say
from pipeline.errors import ExitCode

if TYPE_CHECKING:
    from pipeline.build import BuildResult
    from pipeline.cli.progress import Progress
    from pipeline.planning import Plan

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
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Only errors and the verdict.")
@click.option("-v", "--verbose", is_flag=True, help="Also every line that a stage logs.")
@store_options
def build_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    recipe: Path,
    output: Path,
    jobs: int | None,
    threads: int | None,
    no_forecast: bool,
    is_json: bool,
    quiet: bool,
    verbose: bool,
    store: Path | None,
    is_store_trusted: bool,
    must_rehash: bool,
) -> int:
    """Build what RECIPE asks for, verify it, and publish it when it holds its gates.

    \b
    Examples:
      convert recipe.yaml
      convert recipe.yaml --output /srv/models --json > result.json
      python -m pipeline recipe.yaml          # where another `convert` is on the PATH
    """  # noqa: D301 - \b is click's own
    from pipeline.publish import EarlyCheck
    from pipeline.recipe import load_recipe_file

    loaded = load_recipe_file(recipe)
    early_check = EarlyCheck(output, loaded.recipe.name)  # while the rest is still being imported
    from pipeline.build import BuildOptions, build
    from pipeline.cli.progress import make_progress

    options = BuildOptions(
        output=output,
        store=store,
        is_store_trusted=is_store_trusted,
        must_rehash=must_rehash,
        jobs=jobs,
        threads=threads,
        has_forecast=not no_forecast,
    )
    with make_progress(is_quiet=quiet, is_verbose=verbose) as progress:
        result = build(
            loaded,
            options,
            listener=progress.listen,
            on_plan=lambda plan: begin(plan, progress),
            on_log=progress.log if verbose else None,
            early_check=early_check,
            note=(lambda _: None) if quiet else say,
        )
    if is_json:
        emit(json.dumps(_document(result), indent=2))
    _print_summary(result, is_quiet=quiet)
    return int(EXIT_CODES[result.verdict])


def begin(plan: Plan, progress: Progress) -> None:
    """Say what must be known of the checkpoint, even to those who asked for quiet."""
    for line in plan.source.notes:
        say(f"note: {line}")
    progress.begin(plan)


def _print_summary(result: BuildResult, *, is_quiet: bool) -> None:
    if is_quiet:
        click.echo(f"{result.verdict}: {result.directory}", err=True)
        for reason in result.reasons:
            click.echo(f"  {reason}", err=True)
        return
    if not any(outcome.has_run for outcome in result.outcomes):
        click.echo(f"all {len(result.outcomes)} results were in the store", err=True)
    click.echo(result.summary.rstrip(), err=True)
    for outcome in result.outcomes:
        if outcome.failure is None:
            continue
        click.echo(f"\n`{outcome.node.name}` failed: {outcome.failure.message}", err=True)
        for line in outcome.failure.last_lines[-10:]:
            click.echo(f"  | {line}", err=True)
        if outcome.failure.hint:
            click.echo(f"\nhint: {outcome.failure.hint}", err=True)
    state = "up to date" if result.is_up_to_date else "written"
    click.echo(f"\nartifact ({state}): {result.directory}", err=True)
    click.echo(f"report: {result.directory / 'report.html'}", err=True)


def _document(result: BuildResult) -> dict[str, object]:
    return {
        "verdict": result.verdict,
        "exit_code": int(EXIT_CODES[result.verdict]),
        "artifact": str(result.directory.resolve()),
        "is_up_to_date": result.is_up_to_date,
        "report": result.report().model_dump(mode="json"),
    }
