"""Readers of sample sources: a new kind is a new file here and a line in `READERS`.

The plan reads this to know files by their names, so nothing heavy is imported here nor by the
readers' modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.data.readers.builtin_images import read_builtin_images
from pipeline.data.readers.builtin_texts import read_builtin_texts
from pipeline.data.readers.delimited import read_delimited
from pipeline.data.readers.hub_datasets import read_dataset
from pipeline.data.readers.image_folder import read_image_folder
from pipeline.data.readers.json_lines import read_json_lines
from pipeline.data.readers.parquet import read_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.data.rows import Request, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One kind of source.

    Attributes:
        kind: Its name.
        suffixes: Of the files that it reads, for kinds of one file.
        package: The distribution it needs besides ours; empty for none.
        extra: The extra that installs it.
        read: Yields every row in the order of the source, without holding them.
    """

    kind: str
    suffixes: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""
    read: Callable[[Request], Iterator[Row]]


BUILTINS: Final = {
    "builtin:stdlib-docstrings": read_builtin_texts,
    "builtin:synthetic-images": read_builtin_images,
}
"""Sources that need no file, by their name in a recipe."""

READERS: Final = (
    Reader(kind="builtin", read=lambda request: BUILTINS[request.source](request)),
    Reader(kind="jsonl", suffixes=(".jsonl", ".ndjson"), read=read_json_lines),
    Reader(kind="csv", suffixes=(".csv", ".tsv"), read=read_delimited),
    Reader(
        kind="parquet", suffixes=(".parquet",), package="pyarrow", extra="data", read=read_parquet
    ),
    Reader(kind="images", package="pillow", extra="vision", read=read_image_folder),
    Reader(kind="datasets", package="datasets", extra="data", read=read_dataset),
)


def find_reader(kind: str) -> Reader:
    """The reader of this kind."""
    return next(reader for reader in READERS if reader.kind == kind)
