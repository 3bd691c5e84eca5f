"""Whether a place can be a store: tries every call that the store's promises rest on.

Works in a temporary directory inside the store, or beside where it will be; it is deleted
afterwards, and nothing else is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import PipelineError
from pipeline.store import Store, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TrialState = Literal["ok", "note", "problem"]

SCARCE_BYTES = 4 << 30
"""Less than this is worth a word: a small encoder's results take 0.5 GiB, a large one's several."""

_VOLATILE = frozenset({"tmpfs", "ramfs"})
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "virtiofs"})
_ANOTHER = "set CONVERT_STORE to a directory on a local disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one thing came out; fields as in `doctor.Check`."""

    name: str
    state: TrialState
    detail: str
    hint: str = ""


def examine_store(root: Path) -> Iterator[Trial]:
    """Look at the place of a store and try what the store does there.

    Args:
        root: Its root; need not be there yet.
    """
    try:
        is_there = root.is_dir()
        place = _nearest_directory(root)
    except OSError as error:
        detail = f"{root} cannot be looked at: {error.strerror}"
        yield Trial(name="root", state="problem", detail=detail, hint=_ANOTHER)
        return
    state = "" if is_there else f"; made at the first run, in {place}"
    yield Trial(name="root", state="ok", detail=f"{root}{state}")
    try:
        Store(root)
    except PipelineError as error:
        yield Trial(name="contents", state="problem", detail=error.message, hint=error.hint)
        return
    yield _file_system(place)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    except OSError as error:
        yield Trial(
            name="writable",
            state="problem",
            detail=f"{place} cannot be written: {error.strerror}",
            hint="set CONVERT_STORE to a directory that you can write to",
        )
        return
    try:
        for name, attempt in _ATTEMPTS.items():
            yield _try(name, attempt, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield _free_space(place)


def file_system_type(path: Path, mounts: str) -> str:
    r"""The type of the file system that holds `path`, such as `ext4`; empty when unknown.

    Args:
        path: Absolute.
        mounts: Content of `/proc/self/mounts`, where blanks in names stand as `\040`.
    """
    best, found = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        # Later lines lie over earlier ones, so the last of equal length counts.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), fields[2]
    return found


def _nearest_directory(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _file_system(place: Path) -> Trial:
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        mounts = ""
    kind = file_system_type(place.resolve(), mounts)
    if kind in _VOLATILE:
        detail = f"{kind}: it is in memory, and gone when the machine stops"
        return Trial(name="file system", state="note", detail=detail, hint=_ANOTHER)
    if kind in _REMOTE:
        detail = f"{kind}: over a network, slower, and its locks may not be seen by other machines"
        return Trial(name="file system", state="note", detail=detail, hint=_ANOTHER)
    return Trial(name="file system", state="ok", detail=kind or "unknown")


def _try(name: str, attempt: Callable[[Path], str], scratch: Path) -> Trial:
    """Run one attempt in a directory of its own; what it returns is wrong, empty when nothing is."""
    directory = scratch / name.replace(" ", "-")
    try:
        directory.mkdir()
        wrong = attempt(directory)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        wrong = f"failed: {error.strerror or error} ({code})"
    if not wrong:
        return Trial(name=name, state="ok", detail="works")
    if name == "lock":  # correctness never rests on it
        detail = f"{wrong}: two processes may do the same work twice"
        return Trial(name=name, state="note", detail=detail, hint=_ANOTHER)
    return Trial(name=name, state="problem", detail=wrong, hint=_ANOTHER)


def _write_and_flush(directory: Path) -> str:
    path = directory / "file"
    files.create(path, b"content")
    files.sync(path)
    files.sync(directory)
    return "" if path.read_bytes() == b"content" else "what was written is not what is read"


def _rename_directory(directory: Path) -> str:
    """A tree is moved to its name once; a second one must be refused."""
    for name in ("first", "second"):
        files.make_directory(directory / name)
        files.create(directory / name / "file", name.encode())
    files.rename_new(directory / "first", directory / "final")
    try:
        files.rename_new(directory / "second", directory / "final")
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
    else:
        return "a rename replaced a directory that was there"
    is_first = (directory / "final" / "file").read_bytes() == b"first"
    return "" if is_first else "a refused rename changed what was there"


def _lock(directory: Path) -> str:
    """A second holder of an advisory lock must be refused."""
    path = directory / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        return "flock lets two in at once"
    finally:
        os.close(first)
        os.close(second)


_ATTEMPTS: dict[str, Callable[[Path], str]] = {
    "write and fsync": _write_and_flush,
    "rename without replacing": _rename_directory,
    "lock": _lock,
}


def _free_space(place: Path) -> Trial:
    free = shutil.disk_usage(place).free
    detail = f"{free / (1 << 30):,.1f} GiB"
    if free < SCARCE_BYTES:
        hint = "free some space, or set CONVERT_STORE to a directory on a larger disk"
        return Trial(name="free space", state="note", detail=detail, hint=hint)
    return Trial(name="free space", state="ok", detail=detail)
