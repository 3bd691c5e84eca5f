"""The calls with which the store changes a disk; each is one step that can fail or be cut short.

The store writes through this module and in no other way, so that a test can stop or fail it at
every step, and can compute what a power cut would leave. Nothing here decides anything, retries or
catches an error, but for `rename_new` where the file system lacks the call it needs. (Deleting is
not here: only private directories under `tmp/` are ever deleted, by `workspace.py`.)
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
"""Source: <linux/fs.h> and <fcntl.h>; renameat2(2) is in glibc >= 2.28 and musl >= 1.2.6."""

_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""What kernels, sandboxes and file systems without RENAME_NOREPLACE answer (NFS: EINVAL)."""


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Create one directory; its parent must be there.

    Raises:
        OSError: as mkdir(2); EEXIST when the name is taken.
    """
    path.mkdir(mode)


def create(path: Path, content: bytes) -> None:
    """Create a file that was not there, and write all of its content, without syncing it.

    Raises:
        OSError: as open(2) and write(2); EEXIST when the name is taken, also by a dangling link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Force a file's content, or a directory's names, onto the disk.

    Raises:
        OSError: as fsync(2). ENOSPC, EDQUOT and EIO can show up here for the first time.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_read_only(path: Path) -> None:
    """Take the right to write from everyone (mode 0444).

    Raises:
        OSError: as chmod(2).
    """
    path.chmod(0o444)


def rename_new(source: Path, target: Path) -> None:
    """Rename without ever replacing something that works.

    Where RENAME_NOREPLACE does not exist, a directory is renamed with rename(2): that replaces
    nothing but an empty directory, and no tree of ours is empty, because its manifest is in it. A
    file is renamed over whatever is there: both contents are whole, and the later one stays.

    Raises:
        OSError: EEXIST or ENOTEMPTY when the name is taken; anything else is a real failure.
    """
    call = _renameat2()
    if call is not None:
        code = call(os.fsencode(source), os.fsencode(target))
        if code == 0:
            return
        if code not in _NO_SUCH_CALL:
            raise OSError(code, os.strerror(code), str(source), None, str(target))
    source.rename(target)


def replace(source: Path, target: Path) -> None:
    """Rename a file over whatever is there, in one step.

    Raises:
        OSError: as rename(2).
    """
    source.replace(target)


@cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """`call(source, target) -> errno or 0`, or None where the C library has no renameat2."""
    import ctypes  # 8 ms that a run without a miss does not need

    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    function.restype = ctypes.c_int

    def call(source: bytes, target: bytes) -> int:
        code = function(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
        return ctypes.get_errno() if code else 0

    return call
