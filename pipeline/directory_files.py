"""Looks at and hashes the files of a directory: what is there, of what kind, and with which digest.

Shared by what writes a manifest and what holds a directory against one. Nothing here changes a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.digest_memory import status_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_POOL_BYTES = 4 << 20
"""Less than this is hashed in the calling thread: starting threads would cost more."""

DAMAGE = frozenset(
    {errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}
)
"""Errors that say something about the file. Others (too many open files, no permission) say
something about this process, and must not make a good file look bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """What `lstat` says of one name in a directory; `problem` is empty for a plain file."""

    path: str
    size_bytes: int
    problem: str
    identity: tuple[int, int, int, int] = (0, 0, 0, 0)


def walk_directory(root: Path) -> list[FoundFile]:
    """Everything below `root` that is not a directory, and directories that are empty."""
    mode = os.lstat(root).st_mode
    if not stat.S_ISDIR(mode):
        return [FoundFile(path=".", size_bytes=0, problem=f"it is {_kind(mode)}, not a directory")]
    found: list[FoundFile] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        is_empty = True
        with os.scandir(root / prefix) as children:
            for child in children:
                is_empty = False
                name = prefix + child.name
                status = child.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(f"{name}/")
                else:
                    problem = _status_problem(name, status)
                    found.append(
                        FoundFile(
                            path=name,
                            size_bytes=status.st_size,
                            problem=problem,
                            identity=status_identity(status),
                        )
                    )
        if is_empty and prefix:
            problem = f"{prefix!r} is an empty directory, and a manifest holds files only"
            found.append(FoundFile(path=prefix, size_bytes=0, problem=problem))
    return found


def _kind(mode: int) -> str:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def _status_problem(name: str, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return f"{name!r} is {_kind(status.st_mode)}, not a regular file"
    if status.st_nlink != 1:
        return f"{name!r} has {status.st_nlink} hard links, so it can change behind our back"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """The hash of one file, or why there is none that can be trusted.

    `identity` is None where it was another before the file was read than after.
    """

    sha256: str = ""
    problem: str = ""
    identity: tuple[int, int, int, int] | None = None


def hash_files(root: Path, files: Sequence[tuple[str, int]]) -> dict[str, FileDigest]:
    """Hash files of given sizes; the largest first, in threads, since hashlib releases the GIL."""
    ordered = sorted(files, key=lambda file: -file[1])
    names = [name for name, _ in ordered]
    if len(names) < 2 or sum(size for _, size in files) < _POOL_BYTES:
        return {name: _hash_file(root, name, size) for name, size in ordered}
    # Imported here because it costs 18 ms, which a run over small trees never needs.
    from concurrent.futures import ThreadPoolExecutor

    threads = min(len(names), max(2, os.cpu_count() or 2))
    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        digests = pool.map(lambda file: _hash_file(root, *file), ordered)
        return dict(zip(names, digests, strict=True))


def _hash_file(root: Path, name: str, size_bytes: int) -> FileDigest:
    """Hash through one descriptor, and look before and after: what is hashed is what was seen."""
    # O_NONBLOCK: a pipe that took the file's place must not hang us.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(root / name, flags), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if problem := _status_problem(name, before):
                return FileDigest(problem=problem)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as err:
        if err.errno in DAMAGE:
            return FileDigest(problem=f"{name!r} cannot be read: {os_reason(err)}")
        raise
    is_same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not is_same or after.st_size != size_bytes:
        return FileDigest(
            problem=f"{name!r} changed while it was read; something still writes to it"
        )
    identity = status_identity(after)
    return FileDigest(
        sha256=sha256, identity=identity if identity == status_identity(before) else None
    )


def os_reason(err: OSError) -> str:
    """What the system says, with the name of the error, such as `Permission denied (EACCES)`."""
    return f"{err.strerror or err} ({errno.errorcode.get(err.errno or 0, 'unknown error')})"
