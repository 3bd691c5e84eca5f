"""What readers give and preparation takes: rows of named values, of which each knows its place."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_SHOWN_NAMES = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        where: Its place, for messages: `evaluation.jsonl:12`.
        values: By column; a reader may leave out columns that nobody asked for.
    """

    where: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ClassValue:
    """A class as a data set declares it: its number there, and its name."""

    number: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a reader.

    Attributes:
        source: The source as the recipe says it.
        directory: Holds the files of the source; None for built-in ones.
        columns: The columns that will be used.
        samples: How many rows a source without an end gives.
        seed: Of what a source without an end makes.
        max_length: Tokens that the longest texts of a source without an end reach.
        size: (height, width) of the images that such a source makes.
        subset: Configuration of a data set of several.
        split: Its split.
        scratch: An empty directory to put things into.
    """

    source: str
    directory: Path | None
    columns: tuple[str, ...]
    scratch: Path
    samples: int = 0
    seed: int = 0
    max_length: int = 0
    size: tuple[int, int] = (0, 0)
    subset: str | None = None
    split: str | None = None

    @property
    def root(self) -> Path:
        """The directory of a source that has files."""
        assert self.directory is not None
        return self.directory


def missing_column(name: str, present: Iterable[str], where: str) -> StageError:
    """The error for a column that is not there: what there is, and what may have been meant."""
    names = list(present)
    nearest = difflib.get_close_matches(name, names, n=1)
    question = f" - did you mean `{nearest[0]}`?" if nearest else ""
    return StageError(
        f"there is no column `{name}`{question}",
        where=where,
        hint=f"there are: {listed(names)}; say in `data` which column holds what, "
        "such as `text: sentence`",
    )


def listed(names: Iterable[object]) -> str:
    """Names in backquotes, the first dozen of them."""
    every = [f"`{name}`" for name in names]
    rest = len(every) - MAX_SHOWN_NAMES
    return ", ".join(every[:MAX_SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
