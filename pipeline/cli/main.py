"""The command line's frame: commands, errors, exit codes."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.build import build_command
from pipeline.cli.lazy import LazyCommand, LazyGroup
from pipeline.errors import ExitCode, PipelineError

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM: 128 + SIGINT, as shells have it."""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all is well, 1 a gate failed, 2 usage or recipe error, 3 a stage failed "
    "or a file is damaged, 4 something needed is missing here.",
)
@click.version_option(package_name="convert-pipeline", prog_name="convert")
def cli() -> None:
    """Turn a Hugging Face checkpoint into engine artifacts that can be trusted.

    \b
    convert recipe.yaml              build, verify and publish
    convert plan recipe.yaml         what would run, and why
    convert schema > recipe.json     JSON Schema of the recipe, for editors
    convert ls                       artifacts, versions, verdicts
    convert verify latest            every digest, both ways
    convert inspect PATH             what a recipe, artifact, model or engine holds
    convert doctor                   what is missing on this machine, and how to get it
    """  # noqa: D301 - \b is click's own


cli.add_command(build_command)
cli.add_command(LazyCommand("plan", "pipeline.cli.plan:plan_command"))
cli.add_command(LazyCommand("schema", "pipeline.cli.schema:schema_command"))
cli.add_command(LazyCommand("ls", "pipeline.cli.ls:ls_command"))
cli.add_command(LazyCommand("verify", "pipeline.cli.verify:verify_command"))
cli.add_command(LazyCommand("inspect", "pipeline.cli.inspect:inspect_command"))
cli.add_command(LazyCommand("doctor", "pipeline.cli.doctor:doctor_command"))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; nothing but `SystemExit` escapes."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    except PipelineError as error:
        return _show_error(error, is_json="--json" in arguments)
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "interrupted: what is finished is kept, the next run goes on from there", err=True
        )
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`convert plan ... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        return _show_defect(error)


def _run(arguments: list[str]) -> int:
    try:
        code = cli.main(args=_with_command(arguments), prog_name="convert", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    sys.stdout.flush()
    return int(code or 0)


def _with_command(arguments: list[str]) -> list[str]:
    """Put `run` first where the first word is no command: `convert recipe.yaml`."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    if not words or words[0] in cli.commands:
        return arguments
    near = difflib.get_close_matches(words[0], cli.commands, n=1)
    if near and not Path(words[0]).exists() and not words[0].endswith((".yaml", ".yml")):
        raise click.UsageError(f"there is no command `{words[0]}` - did you mean `{near[0]}`?")
    return ["run", *arguments]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show_error(error: PipelineError, *, is_json: bool) -> int:
    if is_json:
        document = {
            "verdict": "error",
            "exit_code": int(error.exit_code),
            "error": {
                "kind": type(error).__name__,
                "message": error.message,
                "where": error.where,
                "hint": error.hint,
            },
        }
        click.echo(json.dumps(document, indent=2))
    click.echo(f"error: {error}", err=True)
    return int(error.exit_code)


def _show_defect(error: Exception) -> int:
    """Tell of an error that nobody foresaw: a defect of convert, with its traceback in a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="convert-defect-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exc(file=file)
    click.echo(
        f"error: this is a defect of convert: {type(error).__name__}: {error}\n\n"
        f"hint: please report it with {file.name}",
        err=True,
    )
    return int(ExitCode.STAGE_FAILED)
