"""Remembers digests of large source files, so that an unchanged file is not read again.

A file is recognised by path, size, inode and both time stamps. A digest is only remembered when the
file is older than two seconds: a younger one could still change within one tick of its time stamp
(git's "racy" index problem). `--rehash` starts from an empty memory. Losing the file costs time only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from typing import TYPE_CHECKING

from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from pathlib import Path

RACY_SECONDS = 2.0


def file_identity(path: Path) -> tuple[int, int, int, int]:
    """(size, inode, mtime, ctime in ns) of the file a path leads to."""
    stat = path.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


class DigestMemory:
    """SHA-256 of files by identity, kept in one JSON file.

    Args:
        path: Where to keep it; the folder is made when something is saved.
        is_fresh: Start empty whatever the file holds.
    """

    def __init__(self, path: Path, *, is_fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, tuple[list[int], str]] = {}
        self._is_changed = False
        if not is_fresh:
            # A damaged or missing memory is an empty one: it only saves time.
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                loaded = json.loads(path.read_text(encoding="utf-8"))
                self._known = {
                    name: (list(identity), str(digest))
                    for name, (identity, digest) in loaded.items()
                }

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content.

        Raises:
            OSError: when the file cannot be read.
        """
        name = os.fspath(path.absolute())
        identity = list(file_identity(path))
        known = self._known.get(name)
        if known is not None and known[0] == identity:
            return known[1]
        digest = sha256_file(path)
        age_s = time.time() - max(identity[2], identity[3]) / 1e9
        if list(file_identity(path)) == identity and age_s > RACY_SECONDS:
            self._known[name] = (identity, digest)
            self._is_changed = True
        return digest

    def save(self) -> None:
        """Write the memory if it has learnt something; failing to is no error."""
        if not self._is_changed:
            return
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._is_changed = False
