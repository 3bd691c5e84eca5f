"""What is wrong with a recipe, where, and how that is shown: one line a cause, in file order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root of a recipe, such as `("targets", 1, "name")`."""

MAX_SHOWN_PROBLEMS = 20
"""More lines than this help nobody."""

MAX_SHOWN_CHARACTERS = 60
"""Of one key or value in a message."""

_BARE_KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


class Position(NamedTuple):
    """A place in a text file; both numbers count from 1, columns in characters.

    `file` is how messages call the file; empty for the one that is being read.
    """

    line: int
    column: int
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One cause why a recipe cannot be used.

    Attributes:
        position: Where in the file.
        path: The key path it is about; empty for the whole recipe.
        text: Says what is wrong. Called only for the problems that are shown.
        hint: An edit to make, where the text cannot say it in the same line.
        hides_value: The value at `path` could not be read, so that whatever the schema says about
            it, or about the mapping around it, is only a consequence.
        kind: Tells causes at one place apart, without their text.
        combination: The values of a matrix that it was found with; empty where there is none.
    """

    position: Position
    path: KeyPath
    text: Callable[[], str]
    hint: str = ""
    hides_value: bool = False
    kind: str = ""
    combination: str = ""


def format_key_path(path: Sequence[str | int]) -> str:
    """A key path as a person writes it: `targets[1].quantization.per_channel`."""
    text = ""
    for item in path:
        if isinstance(item, int):
            text += f"[{item}]"
        elif _BARE_KEY.fullmatch(item):
            shown = shorten(item)
            text += f".{shown}" if text else shown
        else:
            text += f'["{shorten(item)}"]'
    return text


def format_where(file: str, position: Position, path: Sequence[str | int]) -> str:
    """`file:line:column: key.path`, without the last part for the whole recipe.

    `file` is meant where the position names none.
    """
    where = f"{position.file or file}:{position.line}:{position.column}"
    return f"{where}: {format_key_path(path)}" if path else where


def shorten(text: str) -> str:
    """A text that is safe and short enough for one line of a terminal.

    What cannot be printed (control characters, marks that turn the writing direction) is escaped.
    """
    cut = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut
    )


def recipe_error(file: str, problems: Iterable[Problem]) -> RecipeError:
    """One error out of at least one problem; its text has one line a cause, in file order.

    Args:
        file: The recipe itself; what stands in files that it extends comes after it.
        problems: The causes.
    """

    def order(problem: Problem) -> tuple[bool, str, Position]:
        other = problem.position.file
        return other not in {"", file}, other, problem.position

    ordered = sorted(problems, key=order)
    shown = ordered[:MAX_SHOWN_PROBLEMS]
    first, *others = (
        (format_where(file, problem.position, problem.path), problem.text()) for problem in shown
    )
    lines = [first[1], *(f"{where}: {text}" for where, text in others)]
    if len(ordered) > len(shown):
        lines.append(f"{file}: ... and {len(ordered) - len(shown):,} more like these")
    hints = dict.fromkeys(problem.hint for problem in shown if problem.hint)
    return RecipeError("\n".join(lines), where=first[0], hint="\n      ".join(hints))
