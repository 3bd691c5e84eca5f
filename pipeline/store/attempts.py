"""What unfinished stages leave for their next attempt: `attempts/<key>/`, one directory a key.

It saves work and nothing else: a stage believes nothing it finds here without checking it, writes
each file whole under its final name, and goes on when files vanish. No result ever lies here, so
the directory may be deleted at any time.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.store.records import is_sha256
from pipeline.store.workspace import is_old

if TYPE_CHECKING:
    from pathlib import Path


def open_attempt(parent: Path, key: str) -> Path:
    """The directory of a key, made when it is not there; what it holds may be of any attempt.

    Raises:
        OSError: when it cannot be made.
    """
    path = parent / key
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def end_attempt(parent: Path, key: str) -> None:
    """Delete what was kept for a key; what cannot be deleted is left to a later sweep."""
    shutil.rmtree(parent / key, ignore_errors=True)


def sweep_attempts(parent: Path) -> tuple[Path, ...]:
    """Delete what nobody came back to for a week.

    Returns:
        What was deleted.
    """
    try:
        paths = sorted(parent.iterdir())
    except FileNotFoundError:
        return ()
    swept = []
    for path in paths:
        with suppress(OSError):  # gone meanwhile: sweeping is best effort
            if is_sha256(path.name) and path.is_dir() and is_old(path):
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
    return tuple(swept)
