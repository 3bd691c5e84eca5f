"""Names below the store's root, and how the store is created.

v1/VERSION              what wrote this directory
v1/tmp/<random>/        where stages run, `workspace.py`
v1/trees/<digest>/      an immutable output directory and its MANIFEST.json; read in place
v1/ac/<key>.json        the record of a stage result, `records.py`
v1/last/<hash>.json     the last key a node had: a hint for explaining, never trusted
v1/quarantine/          what was found damaged; never read
v1/attempts/<key>/      what an unfinished stage left for its next attempt, `attempts.py`
v1/locks/<key>.lock     so that one process builds and the others wait
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.hashing import sha256_bytes
from pipeline.store import files
from pipeline.store.faults import store_error
from pipeline.store.workspace import unique_name

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST_FILE = "MANIFEST.json"
"""Lies in each tree and is not part of itself; a stage must not write this name."""

_VERSION = b"convert store 1\n"
_MAX_VERSION_BYTES = 200


def resolve_store_root(environ: Mapping[str, str]) -> Path:
    """Where the store is: `$CONVERT_STORE`, or else `store` in the user's cache directory."""
    if chosen := environ.get("CONVERT_STORE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs  # 18 ms that a run with CONVERT_STORE does not need

    return platformdirs.user_cache_path("convert") / "store"


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths of a store; `root` is what the user named."""

    root: Path

    @property
    def base(self) -> Path:
        """The directory of this version of the layout."""
        return self.root / "v1"

    @property
    def tmp(self) -> Path:
        """Of workspaces, and of hints for the moment before they are renamed."""
        return self.base / "tmp"

    @property
    def trees(self) -> Path:
        """Of all trees."""
        return self.base / "trees"

    @property
    def records(self) -> Path:
        """Of all records."""
        return self.base / "ac"

    @property
    def quarantine(self) -> Path:
        """Of what was found damaged."""
        return self.base / "quarantine"

    @property
    def attempts(self) -> Path:
        """Of what unfinished stages left; made when a stage first wants it."""
        return self.base / "attempts"

    def tree(self, digest: str) -> Path:
        """The tree with this manifest digest."""
        return self.trees / digest

    def record(self, key: str) -> Path:
        """The record of this key."""
        return self.records / f"{key}.json"

    def lock(self, key: str) -> Path:
        """The lock of this key."""
        return self.base / "locks" / f"{key}.lock"

    def hint(self, address: str) -> Path:
        """The last key of a node; hashed, because addresses may hold any character."""
        return self.base / "last" / f"{sha256_bytes(address.encode())}.json"

    def write_over(self, path: Path, content: bytes) -> None:
        """Replace a small file in one step, its content durable before its name.

        Raises:
            OSError: when it cannot be written; nothing is left behind.
        """
        temporary = self.tmp / unique_name()
        try:
            files.create(temporary, content)
            files.sync(temporary)
            files.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def check_version(self) -> bool:
        """Whether the store is there; nothing is written.

        Raises:
            StoreError: when another version wrote it, or it cannot be read.
        """
        path = self.base / "VERSION"
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_VERSION_BYTES)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise store_error(err, "opening the store", self.root) from err
        if content != _VERSION:
            raise StoreError(
                f"VERSION says {content!r}, expected {_VERSION!r}",
                where=str(self.base),
                hint="set CONVERT_STORE to another directory, or use the version that made this one",
            )
        return True

    def create(self) -> None:
        """Create what is missing, durably; several processes may do so at once.

        Raises:
            StoreError: when it cannot be written, or another version wrote it.
        """
        try:
            is_versioned = self.check_version()
            _make_path(self.base)
            for name in ("tmp", "trees", "ac", "last", "quarantine"):
                _make_if_missing(self.base / name)
            # Others must not place links where we open lock files (CVE-2026-22701).
            _make_if_missing(self.base / "locks", 0o700)
            if not is_versioned:  # last, since it says that all the others are there
                self.write_over(self.base / "VERSION", _VERSION)
            files.sync(self.base)
        except OSError as err:
            raise store_error(err, "creating the store", self.root, need_bytes=4096) from err


def _make_path(path: Path) -> None:
    """Create a directory and its parents, each synced into its own parent."""
    if path.is_dir():
        return
    _make_path(path.parent)
    _make_if_missing(path)
    files.sync(path.parent)


def _make_if_missing(path: Path, mode: int = 0o777) -> None:
    if path.is_dir():
        return
    try:
        files.make_directory(path, mode)
    except FileExistsError:
        if not path.is_dir():
            raise


def read_limited(path: Path, limit_bytes: int) -> bytes | None:
    """Content of a small regular file; None when it is longer, or is not a regular file.

    Raises:
        OSError: as open(2) and read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        content = file.read(limit_bytes + 1)
    return content if len(content) <= limit_bytes else None
