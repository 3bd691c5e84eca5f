"""A draft as YAML with comments that say what a line is for and where its numbers come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.recipe.plain import OPENING
from pipeline.recipe.schema import flow_text
from pipeline.report.printable import printable_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.hashing import JSON

COMMENT_COLUMN = 32
LINE_WIDTH = 99


def written(value: JSON) -> str:
    """A value on one line, such that a recipe reads it as it is: `${` begins a variable there."""
    text = flow_text(value).replace(OPENING, f"${OPENING}")
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def line(text: str, comment: str = "") -> str:
    """A line with a comment behind it."""
    if not comment:
        return text
    # Two blanks at least set the comment apart.
    return f"{text:{COMMENT_COLUMN - 2}}  # {one_line(comment)}"


def remark(text: str, indent: int = 0) -> Iterator[str]:
    """A comment on lines of its own, wrapped."""
    import textwrap

    start = f"{' ' * indent}# "
    yield from textwrap.wrap(
        one_line(text),
        LINE_WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )


def commented(lines: Iterable[str], indent: int) -> Iterator[str]:
    """Lines that are there to be uncommented."""
    for each in lines:
        yield f"{' ' * indent}# {each[indent:]}"


def one_line(text: str) -> str:
    """Any text on one line without control characters: nothing in it ends a comment."""
    return " ".join(printable_text(text).split())
