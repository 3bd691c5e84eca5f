"""The one table among the files of a source; images that it names may lie around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path


def find_table(directory: Path, suffixes: tuple[str, ...]) -> Path:
    """The file with one of these suffixes.

    Raises:
        StageError: when there is none, or more than one.
    """
    found = sorted(path for path in directory.iterdir() if path.suffix.lower() in suffixes)
    if len(found) != 1:
        raise StageError(
            f"{len(found)} files end in {' or '.join(suffixes)}, there must be one",
            where=str(directory),
        )
    return found[0]
