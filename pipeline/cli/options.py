"""Options that several commands share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")
R = TypeVar("R")

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


_COLUMN_OPTIONS = (
    click.option("--text", metavar="COLUMN", help="Column of the text, or of the question."),
    click.option(
        "--text-pair", metavar="COLUMN", help="Column of a second text, or of the passage."
    ),
    click.option(
        "--choices",
        metavar="COLUMN",
        multiple=True,
        help="Column of the choices, or one for each.",
    ),
    click.option("--image", metavar="COLUMN", help="Column of the image."),
    click.option("--audio", metavar="COLUMN", help="Column of the sound."),
    click.option("--target-text", metavar="COLUMN", help="Column of the text to be written."),
    click.option("--label", metavar="COLUMN", help="Column of the true answer."),
    click.option("--no-labels", is_flag=True, help="Leave labels out."),
)


def column_options(function: Callable[..., R]) -> Callable[..., R]:
    """Which columns of `--data` hold what; the command gets them as `columns`, a `ColumnOptions`."""

    @functools.wraps(function)
    def with_columns(  # noqa: PLR0913 - one parameter an option
        *arguments: object,
        text: str | None,
        text_pair: str | None,
        choices: tuple[str, ...],
        image: str | None,
        audio: str | None,
        target_text: str | None,
        label: str | None,
        no_labels: bool,
        **others: object,
    ) -> R:
        from pipeline.drafting import ColumnOptions

        if no_labels and label is not None:
            raise click.UsageError("--label and --no-labels exclude each other")
        columns = ColumnOptions(
            text=text,
            text_pair=text_pair,
            choices=choices,
            image=image,
            audio=audio,
            target=target_text,
            label=label,
            has_labels=not no_labels,
        )
        return function(*arguments, columns=columns, **others)

    for option in reversed(_COLUMN_OPTIONS):
        with_columns = option(with_columns)
    return with_columns
