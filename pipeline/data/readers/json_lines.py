"""`.jsonl`: a JSON object on each line, read one line at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.data.rows import Row
from pipeline.data.tables import find_table
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.rows import Request

SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 256 << 20
"""A longer line is a file of another kind, and would fill the memory."""


def read_json_lines(request: Request) -> Iterator[Row]:
    """A row for each line that is not blank.

    Raises:
        StageError: when a line is not UTF-8, not JSON or not an object; names the line.
    """
    path = find_table(request.root, SUFFIXES)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            where = f"{path.name}:{number}"
            if len(line) == MAX_LINE_BYTES:
                raise StageError(
                    f"the line is longer than {MAX_LINE_BYTES >> 20} MiB",
                    where=where,
                    hint="write one JSON object on each line",
                )
            # A byte order mark is what some editors begin UTF-8 with.
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield Row(where, _parse(line, where))


def _parse(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise StageError(
            f"the line is not UTF-8: {err.reason} at byte {err.start}",
            where=where,
            hint="save the file as UTF-8",
        ) from err
    except (ValueError, RecursionError) as err:
        raise StageError(
            f"the line is not JSON: {err}",
            where=where,
            hint="write one JSON object on each line, without line breaks inside",
        ) from err
    if not isinstance(value, dict):
        raise StageError(
            f"the line is a JSON {_kind(value)}, not an object",
            where=where,
            hint='write objects: {"text": "..."}',
        )
    return value


def _kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
