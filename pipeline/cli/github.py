"""Tells GitHub Actions of a report: on by itself where `GITHUB_ACTIONS` is `true`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import say
from pipeline.errors import PipelineError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.recipe import LoadedRecipe
    from pipeline.report.schema import Report

github_option = click.option(
    "--github/--no-github",
    "is_github",
    default=None,
    help="Annotations and a step summary for GitHub Actions; default: where GITHUB_ACTIONS is true.",
)


WHERE = re.compile(r"(.+?):([0-9]+):([0-9]+)(?:: |$)")
"""`file:line:column: key.path`, as errors about a recipe have it."""


def wants_github(is_github: bool | None, environment: Mapping[str, str]) -> bool:
    """Whether to speak to GitHub: as the user says, else where its runner says that it runs us."""
    return environment.get("GITHUB_ACTIONS") == "true" if is_github is None else is_github


def annotate_error(error: PipelineError, arguments: Sequence[str]) -> None:
    """Write an error that ends the command to standard error as an annotation, where GitHub reads it.

    Args:
        error: What ends it; when it is about a line of a recipe, so is the annotation.
        arguments: Of the command line, which may have failed before it was understood.
    """
    given = {"--github": True, "--no-github": False}
    named = [given[argument] for argument in arguments if argument in given]
    if not wants_github(named[-1] if named else None, os.environ):
        return
    from pipeline.recipe.places import name_in_repository
    from pipeline.report.github import error_command
    from pipeline.report.places import Place
    from pipeline.report.printable import printable_text

    found = WHERE.match(error.where)
    place = None
    if found is not None:
        file, line, column = found.groups()
        place = Place(file=name_in_repository(Path(file)), line=int(line), column=int(column))
    text = error.message if place is not None else str(error)
    say(error_command(printable_text(text), title="convert", place=place))


def tell_github(
    report: Callable[[], Report], loaded: LoadedRecipe | None, *, is_github: bool | None
) -> None:
    """Write annotations to standard error, and the report into the step's summary where there is one.

    Args:
        report: Gives the report; it is only read when it is wanted.
        loaded: The recipe whose lines are annotated; None: annotations have no line.
        is_github: `--github`, `--no-github`, or None when neither is given.
    """
    if not wants_github(is_github, os.environ):
        return
    from pipeline.report.github import annotation_lines, append_summary

    places = None
    if loaded is not None:
        from pipeline.recipe.places import recipe_places

        places = recipe_places(loaded)
    shown = report()
    for line in annotation_lines(shown, places):
        say(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if summary and not append_summary(shown, Path(summary)):
            say("warning: GitHub's step summary is full, so the report is not in it")
    except StoreError as error:  # the verdict and the artifact stand all the same
        say(f"warning: {error}")
