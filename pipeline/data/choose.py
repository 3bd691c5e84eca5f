"""Which rows of a source are taken: chosen by the seed, without holding the source in memory."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.data.rows import Row, missing_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows that were chosen.

    Attributes:
        rows: Each with its number in the source, in the order of the choice.
        seen: How many rows the source has.
    """

    rows: tuple[tuple[int, Row], ...]
    seen: int


def choose_rows(
    rows: Iterable[Row], *, count: int | None, seed: int, columns: Sequence[str]
) -> Choice:
    """The rows of the `count` lowest ranks, best first; the rank of a row is a hash of its number.

    A choice of fewer is the beginning of a choice of more. All rows are read, so that a damaged one
    is found whatever the seed; only the chosen ones are kept.

    Args:
        rows: The source.
        count: How many, at least 1; None for all of them.
        seed: Decides the ranks.
        columns: The columns to keep.

    Raises:
        StageError: when a row lacks one of the columns.
    """
    kept: list[tuple[int, int, Row]] = []  # a heap with the worst rank on top
    seen = 0
    for row in rows:
        for column in columns:
            if column not in row.values:
                raise missing_column(column, row.values, row.where)
        rank = -_rank(seed, seen)
        if count is None or len(kept) < count:
            heapq.heappush(kept, (rank, seen, _only(row, columns)))
        elif rank > kept[0][0]:
            heapq.heapreplace(kept, (rank, seen, _only(row, columns)))
        seen += 1
    ordered = sorted(kept, key=lambda entry: -entry[0])
    return Choice(tuple((number, row) for _, number, row in ordered), seen)


def _only(row: Row, columns: Sequence[str]) -> Row:
    return Row(row.where, {column: row.values[column] for column in columns})


def _rank(seed: int, number: int) -> int:
    """A place in an order that is fixed by the seed, on every version of Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{number}".encode()).digest()[:16])
