"""The text that every Python brings along: the source of its own standard library.

Labels come from the grammar, so they are certain. The split is by file: no sentence of the test
split stands beside one that was trained on.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TEST_SHARE = 0.15
"""Share of the files that is for tests only."""

# Tests are missing in some distributions; `encodings` and `pydoc_data` are tables.
SKIPPED_PARTS = frozenset(
    {"__pycache__", "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


@dataclass(frozen=True, slots=True)
class SourceText:
    """One file of the standard library.

    Attributes:
        name: Relative to the library's root.
        text: Its content.
        tree: The content, parsed.
    """

    name: str
    text: str
    tree: ast.Module

    @property
    def is_for_tests(self) -> bool:
        """Whether it belongs to the test split; decided by its name alone."""
        return rank(self.name) < TEST_SHARE


def read_files() -> Iterator[SourceText]:
    """Every file of the library that is UTF-8 and parses, in an order that looks random.

    Raises:
        FileNotFoundError: when this Python has no source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    chosen = [name.as_posix() for name in names if SKIPPED_PARTS.isdisjoint(name.parts)]
    if not chosen:
        raise FileNotFoundError(f"this Python has no source of its standard library in `{root}`")
    for name in sorted(chosen, key=rank):
        with warnings.catch_warnings():
            # The library has invalid escapes of its own; nobody here can mend them.
            warnings.simplefilter("ignore")
            try:
                text = (root / name).read_text(encoding="utf-8")
                yield SourceText(name, text, ast.parse(text))
            except (UnicodeDecodeError, SyntaxError):
                continue


def rank(text: str) -> float:
    """A number from 0 to 1 that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / (1 << 48)
