"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))


def _variables(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """`name=value` of every `--var`; whether there are such variables is the recipe's to say."""
    variables: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"`{text}` is not name=value")
        if name in variables:
            raise click.BadParameter(f"`{name}` is given twice")
        variables[name] = value
    return variables


variables_option = click.option(
    "--var",
    "variables",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_variables,
    help="A value for a variable of the recipe; may be repeated.",
)
json_option = click.option("--json", "is_json", is_flag=True, help="One JSON document on stdout.")
output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    help="Where artifacts are.",
)


def store_options(function: F) -> F:
    """Where the store is, and how far it is trusted."""
    for option in (
        click.option(
            "--rehash",
            "must_rehash",
            is_flag=True,
            help="Read every file of the checkpoint again, even if it seems unchanged.",
        ),
        click.option(
            "--trust-store",
            "is_store_trusted",
            is_flag=True,
            help="Do not verify the digests of stored results.",
        ),
        click.option(
            "--store",
            type=click.Path(path_type=Path, file_okay=False),
            help="Root of the store; default $CONVERT_STORE, or the user's cache directory.",
        ),
    ):
        function = option(function)
    return function
