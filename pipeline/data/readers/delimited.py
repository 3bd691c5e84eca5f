"""`.csv` and `.tsv`: a header, then a row on each line; every value is text."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from pipeline.data.rows import Row, listed
from pipeline.data.tables import find_table
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.data.rows import Request

SUFFIXES = (".csv", ".tsv")
MAX_FIELD_CHARACTERS = 1 << 24


def read_delimited(request: Request) -> Iterator[Row]:
    """A row for each record; an empty value is the empty text.

    Raises:
        StageError: when there is no header, a record has more or fewer values than it, or the file
            is not UTF-8.
    """
    path = find_table(request.root, SUFFIXES)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Quotes have no meaning in most .tsv files, but Excel's and pandas' write them.
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        # Not strict, a quote that is never closed would swallow the rest of the file unseen.
        records = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = _check_header(next(records, []), request.columns, path)
            for record in records:
                if not record:
                    continue
                where = f"{path.name}:{records.line_num}"
                if len(record) != len(header):
                    raise StageError(
                        f"the row has {len(record)} values, the header has {len(header)}",
                        where=where,
                        hint="put values with commas, quotes or line breaks into double quotes",
                    )
                yield Row(where, dict(zip(header, record, strict=True)))
        except UnicodeDecodeError as err:
            raise StageError(
                f"the file is not UTF-8: {err.reason}",
                where=f"{path.name}: after line {records.line_num}",
                hint="save it as UTF-8",
            ) from err
        except csv.Error as err:
            raise StageError(
                f"the row cannot be read: {err}",
                where=f"{path.name}:{records.line_num}",
                hint="put values with commas, quotes or line breaks into double quotes, and write "
                "a quote inside them twice",
            ) from err


def _check_header(header: list[str], columns: tuple[str, ...], path: Path) -> list[str]:
    """The header's names. A first line without any column that is asked for is no header."""
    names = [name.strip() for name in header]
    if not names or not any(names):
        raise StageError("the file has no header", where=f"{path.name}:1", hint=_HEADER_HINT)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise StageError(f"two columns are named `{twice}`", where=f"{path.name}:1")
    if columns and not set(columns) & set(names):
        raise StageError(
            f"the first line is not a header with {listed(columns)}, it is: {listed(names)}",
            where=f"{path.name}:1",
            hint=_HEADER_HINT,
        )
    return names


_HEADER_HINT = (
    "the first line must name the columns, such as `text,label`; say in `data` which column holds "
    "what, such as `text: sentence`"
)
