"""How an operating system's refusal is told to the user: with numbers, and with what to do."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path` or its nearest parent.

    Raises:
        OSError: as statvfs(3), for anything but a path that is not there yet.
    """
    for place in (path, *path.parents):
        try:
            status = os.statvfs(place)
        except FileNotFoundError:
            continue
        return status.f_bavail * status.f_frsize
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def store_error(err: OSError, doing: str, root: Path, *, need_bytes: int = 0) -> StoreError:
    """The error to raise from `err`.

    Args:
        err: What the operating system said.
        doing: What was being done, such as `publishing a result`.
        root: The store's directory.
        need_bytes: How much was to be written, for the message about a full disk.
    """
    reason = f"{err.strerror or err} ({errno.errorcode.get(err.errno or 0, 'unknown error')})"
    message, hint = f"{doing} failed: {reason}", ""
    if err.errno in _FULL:
        what = "the quota is used up" if err.errno == errno.EDQUOT else "disk full"
        message = f"{what} while {doing}: {need_bytes} bytes needed, {_free(root)} bytes free"
        hint = "free some space, or set CONVERT_STORE to a directory on a larger disk"
    elif err.errno == errno.EFBIG:
        message = f"{doing} failed: a file is larger than this process may write ({reason})"
        hint = "raise the limit: ulimit -f unlimited"
    elif err.errno in _DENIED:
        message = f"{doing} failed: the store cannot be written: {reason}"
        hint = "set CONVERT_STORE to a directory that you can write to"
    elif err.errno in {errno.ENOTDIR, errno.EEXIST}:
        hint = "a file is in the way: set CONVERT_STORE to a directory"
    elif err.errno in {errno.EMFILE, errno.ENFILE}:
        hint = "raise the limit on open files: ulimit -n 4096"
    elif err.errno in {errno.EINVAL, errno.ENOTSUP}:
        hint = "this file system lacks what a store needs: set CONVERT_STORE to a local disk"
    elif err.errno == errno.EXDEV:
        hint = "the directory of the store must lie on one file system as a whole"
    return StoreError(message, where=str(root), hint=hint)


def _free(root: Path) -> str:
    try:
        return str(free_bytes(root))
    except OSError:  # the number is an extra; the error that led here must not be lost for it
        return "unknown"
