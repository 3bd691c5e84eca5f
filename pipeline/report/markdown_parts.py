"""Parts of `report.md`: sections, tables, and names and texts that cannot start markup."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERDICT_MARKS = {"passed": "✅", "partly": "◐", "failed": "❌", "error": "💥", "not_run": "◌"}

REFERENCES = {ord(sign): f"&#{ord(sign)};" for sign in "<>|`\\*[]~$"} | {ord("&"): "&amp;"}
PLAIN_CODE = re.compile(r"[A-Za-z0-9_.,:@/=+ -]*[A-Za-z0-9_]")
AUTOLINK = re.compile(r"(?i)\b(https?:|ftp:|mailto:|xmpp:|www\.)")
BLOCK_START = re.compile(r"^(?:[#+=-]|\d+[.)](?: |$))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with lines that may be cut from the end, between a head and a foot that may not."""

    head: tuple[str, ...]
    lines: tuple[str, ...]
    foot: tuple[str, ...] = ()


def escape(text: str) -> str:
    """Text as Markdown that shows exactly it, on one line, wherever it stands.

    Addresses and mentions are broken with a zero-width space: GitHub links and notifies otherwise.
    """
    flat = " ".join(text.split())
    flat = AUTOLINK.sub("\\1\N{ZERO WIDTH SPACE}", flat).replace("@", "@\N{ZERO WIDTH SPACE}")
    escaped = flat.translate(REFERENCES)
    escaped = re.sub(r"(?<!\w)_|_(?!\w)", "&#95;", escaped)
    start = BLOCK_START.match(escaped)
    return f"&#{ord(escaped[0])};{escaped[1:]}" if start else escaped


def code(text: str) -> str:
    """A name as code, when it is as plain as names should be; else escaped text."""
    return f"`{text}`" if PLAIN_CODE.fullmatch(text) else escape(text)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, folded: bool = False
) -> Section | None:
    """A section that is one table; None without rows.

    Args:
        title: Its heading.
        columns: Their names; one that ends in `>` holds figures and is set flush right.
        rows: Cells that are Markdown already.
        folded: Whether it is closed until a reader opens it.
    """
    lines = tuple(f"| {' | '.join(cells)} |" for cells in rows)
    if not lines:
        return None
    names = [name.removesuffix(">") for name in columns]
    rule = ["---:" if name.endswith(">") else "---" for name in columns]
    head_lines = (f"| {' | '.join(names)} |", f"| {' | '.join(rule)} |")
    if folded:
        head = (f"<details><summary><strong>{title}</strong></summary>", "", *head_lines)
        return Section(head=head, lines=lines, foot=("", "</details>"))
    return Section(head=(f"## {title}", "", *head_lines), lines=lines)
