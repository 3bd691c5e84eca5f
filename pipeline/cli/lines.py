"""Text for a terminal: columns, sizes, and names that cannot do harm there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report.figures import size
from pipeline.report.printable import printable_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.recipe.parts import Scalar

__all__ = ["columns", "counted", "one_line", "size", "values_text"]

MAX_COLUMN = 72


def one_line(text: object, limit: int = 300) -> str:
    """Any text on one line, without control characters and escapes."""
    return " ".join(printable_text(str(text), limit).split())


def counted(number: int, noun: str) -> str:
    """A number and its noun, such as `1 layer` or `2 layers`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def values_text(values: Mapping[str, Scalar]) -> str:
    """A combination of a matrix, such as `model=a, length=8`."""
    from pipeline.recipe.schema import flow_text

    return one_line(", ".join(f"{name}={flow_text(value)}" for name, value in values.items()))


def columns(rows: Iterable[Sequence[object]], *, indent: str = "  ") -> Iterator[str]:
    """Rows as lines of aligned columns; what is longer than a column shifts its own row only."""
    texts = [[one_line(cell) for cell in row] for row in rows]
    widths = [min(max(map(len, column)), MAX_COLUMN) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{indent}{'  '.join(cells)}".rstrip()
