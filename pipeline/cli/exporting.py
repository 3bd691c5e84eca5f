"""What every command that writes a form of an artifact for another program shares."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.bundle.written import Export

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says."""

    artifact: str
    directory: Path
    targets: tuple[str, ...]
    must_replace: bool
    output: Path
    is_json: bool

    def write(
        self, export: Callable[..., Export[Any]], *, serve: str = "", **options: object
    ) -> None:
        """Export the artifact and say what was written.

        Args:
            export: Takes the artifact's directory, the directory to write, `targets` and `replace`.
            serve: The command that loads or serves it; empty when there is none.
            options: What else `export` takes.
        """
        from pipeline.listing import find_artifact

        made = export(
            find_artifact(self.artifact, self.output),
            self.directory,
            targets=self.targets,
            replace=self.must_replace,
            **options,
        )
        tell_export(made, serve=serve, is_json=self.is_json)


def export_parameters(function: Callable[..., None]) -> Callable[..., None]:
    """ARTIFACT, DIRECTORY, --target, --force, --output and --json of an export command.

    The command gets them as one `Asked`, and options of its own by their names.
    """

    @functools.wraps(function)
    def command(**given: Any) -> None:
        asked = Asked(**{field.name: given.pop(field.name) for field in fields(Asked)})
        function(asked, **given)

    for parameter in reversed(_PARAMETERS):
        command = parameter(command)
    return command


def tell_export(made: Export[Any], *, serve: str = "", is_json: bool) -> None:
    """Say what was written: rows for people, or one document for programs.

    Args:
        made: What was written.
        serve: The command that loads or serves it; empty when there is none.
        is_json: The document is asked for.
    """
    from pipeline.cli.lines import columns, one_line

    models = [
        {field.name: str(getattr(model, field.name)) for field in fields(model)}
        for model in made.models
    ]
    if is_json:
        document = {
            "exit_code": 0,
            "directory": str(made.directory),
            "artifact": made.artifact,
            "models": models,
            "notes": list(made.notes),
        }
        emit(json.dumps(document, indent=2))
        return
    # A number alone says nothing: `4 bits`, `29 weights`.
    rows = [
        [f"{value} {name}" if value.isdigit() else value for name, value in model.items()]
        for model in models
    ]
    for line in columns(rows):
        emit(line)
    for note in made.notes:
        say(f"note: {one_line(note)}")
    emit(f"written: {one_line(made.directory)}")
    if serve:
        say(f"serve it: {one_line(serve)}")
