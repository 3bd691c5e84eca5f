"""Commands that are imported when they are called: each would cost a run without work a millisecond."""

from __future__ import annotations

import importlib

import click


class LazyCommand(click.Command):
    """Stands for a command until it is needed.

    Args:
        name: What the user types.
        attribute: Where the real command is: `module:name`.
    """

    def __init__(self, name: str, attribute: str) -> None:
        super().__init__(name)
        self.attribute = attribute

    def load(self) -> click.Command:
        """Import the real command."""
        module, _, name = self.attribute.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A group that imports a `LazyCommand` when it is called, or listed with its help."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported."""
        command = super().get_command(ctx, cmd_name)
        return command.load() if isinstance(command, LazyCommand) else command
