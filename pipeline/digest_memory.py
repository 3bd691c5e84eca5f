"""Remembers digests of large files, so that an unchanged file is not read again.

It serves the files of a checkpoint, and the models of an artifact that is judged again; `convert verify`
and what serves results of the store read every byte. A file is recognised by path, size, inode and both time stamps. A digest is only remembered when the
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
    return status_identity(path.stat())


def status_identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """The same of a status that was asked for already."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


class DigestMemory:
    """SHA-256 of files by identity, kept in one JSON file.

    Args:
        path: Where to keep it; the folder is made when something is saved.
        is_fresh: Start empty whatever the file holds.

    Attributes:
        recalled: How many digests were given without a file being read.
    """

    def __init__(self, path: Path, *, is_fresh: bool = False) -> None:
        self.recalled = 0
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
        identity = file_identity(path)
        if known := self.recall(path, identity):
            return known
        digest = sha256_file(path)
        if file_identity(path) == identity:
            self.learn(path, identity, digest)
        return digest

    def recall(self, path: Path, identity: tuple[int, int, int, int]) -> str:
        """The digest of a file that is still what it was when it was learnt; else empty."""
        known = self._known.get(os.fspath(path.absolute()))
        if known is None or known[0] != list(identity):
            return ""
        self.recalled += 1
        return known[1]

    def learn(self, path: Path, identity: tuple[int, int, int, int], digest: str) -> None:
        """Remember the digest of a file whose identity was the same before and after it was read.

        A file younger than `RACY_SECONDS` is not remembered.
        """
        age_s = time.time() - max(identity[2], identity[3]) / 1e9
        if age_s > RACY_SECONDS:
            self._known[os.fspath(path.absolute())] = (list(identity), digest)
            self._is_changed = True

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
