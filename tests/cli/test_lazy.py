"""Commands that are imported late are there all the same, with help that can be read."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from pipeline.cli.lazy import LazyCommand
from pipeline.cli.main import cli

LATE = (
    "check",
    "diff",
    "doctor",
    "export-epcontext",
    "export-genai",
    "export-openvino",
    "export-optimum",
    "export-transformersjs",
    "export-triton",
    "export-vllm",
    "generate",
    "init",
    "inspect",
    "judge",
    "ls",
    "plan",
    "schema",
    "verify",
)


def _help(name: str) -> str:
    context = click.Context(cli, info_name="convert")
    command = cli.get_command(context, name)
    assert command is not None
    assert command.name == name
    return command.get_help(click.Context(command, parent=context, info_name=name))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_example_stands_on_a_line_of_its_own(name: str) -> None:
    lines = [line.strip() for line in _help(name).splitlines()]
    start = next(i for i, line in enumerate(lines) if line in {"Example:", "Examples:"})
    examples = lines[start + 1 : lines.index("", start)]
    assert examples
    assert all(line.startswith(("convert ", "python -m pipeline ")) for line in examples)


@pytest.mark.parametrize(
    "name",
    [
        "check",
        "doctor",
        "export-epcontext",
        "export-genai",
        "export-openvino",
        "export-optimum",
        "export-transformersjs",
        "export-triton",
        "export-vllm",
        "init",
        "inspect",
        "judge",
        "ls",
        "verify",
    ],
)
def test_the_help_of_these_commands_lists_their_exit_codes(name: str) -> None:
    assert "Exit codes: 0 " in _help(name)


def test_late_commands_are_not_imported_with_the_command_line() -> None:
    assert {n for n, c in cli.commands.items() if isinstance(c, LazyCommand)} == set(LATE)
    code = "import sys, pipeline.cli.main; print([m for m in sys.modules if 'pipeline.cli' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in LATE if f"pipeline.cli.{name.replace('-', '_')}'" in done.stdout]
