"""What every command that writes a form of an artifact for another program shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

F = TypeVar("F", bound="Callable[..., object]")

_PARAMETERS = (
    click.argument("artifact"),
    click.argument("directory", type=click.Path(path_type=Path)),
    click.option(
        "--target", "targets", metavar="NAME", multiple=True, help="Only this; repeatable."
    ),
    click.option(
        "--force", "must_replace", is_flag=True, help="Replace what was written there earlier."
    ),
    output_option,
    json_option,
)


def export_parameters(function: F) -> F:
    """ARTIFACT, DIRECTORY, --target, --force, --output and --json of an export command.

    The command gets `artifact`, `directory`, `targets`, `must_replace`, `output` and `is_json`.
    """
    for parameter in reversed(_PARAMETERS):
        function = parameter(function)
    return function


def tell_export(
    *,
    directory: Path,
    artifact: str,
    models: Sequence[Mapping[str, str]],
    notes: Sequence[str] = (),
    serve: str = "",
    is_json: bool,
) -> None:
    """Say what was written: rows for people, or one document for programs.

    Args:
        directory: Where it lies.
        artifact: Which one it is of, as `name/version`.
        models: A row each; all have the same keys, and a row's values are its columns.
        notes: What was left out, or is not as one may think, a sentence each.
        serve: The command that loads or serves it; empty when there is none.
        is_json: The document is asked for.
    """
    from pipeline.cli.lines import columns, one_line

    if is_json:
        document = {
            "exit_code": 0,
            "directory": str(directory),
            "artifact": artifact,
            "models": [dict(model) for model in models],
            "notes": list(notes),
        }
        emit(json.dumps(document, indent=2))
        return
    for line in columns(list(model.values()) for model in models):
        emit(line)
    for note in notes:
        say(f"note: {one_line(note)}")
    emit(f"written: {one_line(directory)}")
    if serve:
        say(f"serve it: {one_line(serve)}")
