"""Names out of foreign files, for messages: short, and without what steers a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NAME = 80
MAX_NAMES = 8


def quoted(name: object) -> str:
    """One name in backticks."""
    text = "".join(each if each.isprintable() else "?" for each in str(name))
    return f"`{text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + '...'}`"


def listed(names: Iterable[str]) -> str:
    """Some names, sorted; those beyond a few are left out."""
    ordered = sorted(names)
    shown = ", ".join(map(quoted, ordered[:MAX_NAMES]))
    return f"{shown}{', ...' * (len(ordered) > MAX_NAMES)}" if ordered else "nothing"
