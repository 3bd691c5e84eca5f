"""Immutable output directories under `trees/`, each named by the digest of its manifest."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, StoreError
from pipeline.manifest import Manifest, check_directory
from pipeline.store import files
from pipeline.store.faults import store_error
from pipeline.store.layout import MANIFEST_FILE, Layout, read_limited
from pipeline.store.workspace import unique_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})
"""The only answers to a rename that mean that someone else was first."""

MAX_SMALL_BYTES = 64 << 20
"""Largest record or manifest that is read: far above any real one, far below all memory."""

_ATTEMPTS = 3
"""A rename that finds a damaged tree in its way sets it aside and tries again, this often."""

_Stamp = tuple[tuple[str, int, int, int, int], ...]


class Trees:
    """The trees of one store, and what this process knows of them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._verified: dict[str, _Stamp] = {}

    def open(self, digest: str) -> Path | None:
        """The tree when every byte of it is right; otherwise None, and what is there is set aside.

        A tree is hashed once in a process; later only names, inodes, sizes and time stamps are
        compared, which is enough to see a tool that wrote beside its input.

        Raises:
            StoreError: when the answer cannot be had (permissions, too many open files).
        """
        path = self._layout.tree(digest)
        try:
            inode = path.lstat().st_ino
            stamp = _stamp(path)
            if self._verified.get(digest) == stamp or not self.problems(digest):
                self._verified[digest] = stamp
                return path
        except FileNotFoundError:
            if not os.path.lexists(path):
                return None
        except OSError as err:
            if err.errno not in DAMAGE:
                raise store_error(err, "reading a tree", self._layout.root) from err
        self._verified.pop(digest, None)
        set_aside(self._layout, path, inode)
        return None

    def problems(self, digest: str) -> tuple[str, ...]:
        """What is wrong with a tree, as sentences; nothing is remembered or moved.

        Raises:
            StoreError: when the answer cannot be had.
            OSError: when its manifest cannot be read for a reason that is not damage.
        """
        path = self._layout.tree(digest)
        try:
            status = (path / MANIFEST_FILE).lstat()
            content = read_limited(path / MANIFEST_FILE, MAX_SMALL_BYTES) or b""
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return (f"{MANIFEST_FILE} is missing",)
        except OSError as err:
            if err.errno in DAMAGE:
                return (f"{MANIFEST_FILE} cannot be read: {err.strerror}",)
            raise
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return (f"{MANIFEST_FILE} is not a regular file with one name",)
        try:
            manifest = Manifest.from_json(content.decode())
        except (ArtifactError, UnicodeDecodeError) as err:
            return (f"{MANIFEST_FILE}: {err}",)
        if manifest.digest != digest:
            return (f"{MANIFEST_FILE} belongs to another tree, {manifest.digest}",)
        try:
            return check_directory(path, manifest, ignore=frozenset({MANIFEST_FILE}))
        except ArtifactError as err:
            raise StoreError(err.message, where=err.where) from err

    def publish(self, output: Path, manifest: Manifest) -> None:
        """Move a directory in: bytes durable first, then the name visible, then the name durable.

        Afterwards a tree with this digest is there and whole, ours or someone else's.

        Raises:
            OSError: for any failure; only EEXIST and ENOTEMPTY of the rename are taken to mean
                that someone else was first.
        """
        written = [output / entry.path for entry in manifest.entries]
        for path in written:
            files.sync(path)
        files.create(output / MANIFEST_FILE, manifest.to_json().encode())
        files.sync(output / MANIFEST_FILE)
        for directory in _directories(output, manifest):
            files.sync(directory)
        for path in (*written, output / MANIFEST_FILE):
            files.make_read_only(path)
        self._rename(output, manifest.digest)
        files.sync(self._layout.trees)  # also when it is theirs, which may not be durable yet

    def _rename(self, output: Path, digest: str) -> None:
        target = self._layout.tree(digest)
        for _ in range(_ATTEMPTS):
            try:
                files.rename_new(output, target)
            except OSError as err:
                if err.errno not in TAKEN:
                    raise
                if self.open(digest) is not None:
                    return  # someone else was first, and theirs is whole
            else:
                self._verified[digest] = _stamp(target)
                return
        raise StoreError(
            "a damaged tree cannot be moved out of the way",
            where=str(target),
            hint=f"rm -r {target}",
        )


DAMAGE = frozenset({errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR})
"""Errors of reading that say something about the file, not about this process."""


def set_aside(layout: Layout, path: Path, inode: int) -> None:
    """Move what was found damaged to `quarantine/`, unless something else has its name by now.

    Where it cannot be moved (a store that is only read) it stays: it is verified, and refused,
    each time that it is met.
    """
    with suppress(OSError):
        if path.lstat().st_ino == inode:
            files.rename_new(path, layout.quarantine / f"{path.name}.{unique_name()}")


def _directories(output: Path, manifest: Manifest) -> Iterator[Path]:
    """All directories of a tree, the deepest first."""
    parents = {
        parent
        for entry in manifest.entries
        for parent in (output / entry.path).parents
        if parent.is_relative_to(output)
    }
    yield from sorted({*parents, output}, key=lambda path: -len(path.parts))


def _stamp(path: Path) -> _Stamp:
    """Name, inode, size and both time stamps of everything in a tree: what a writer changes."""
    root = path.lstat()  # not through a link that took its place
    found = [(".", root.st_ino, root.st_mode, 0, 0)]
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(path / prefix) as children:
            for child in children:
                status = child.stat(follow_symlinks=False)
                times = (status.st_mtime_ns, status.st_ctime_ns)
                found.append((prefix + child.name, status.st_ino, status.st_size, *times))
                if stat.S_ISDIR(status.st_mode):
                    pending.append(f"{prefix}{child.name}/")
    return tuple(sorted(found))
