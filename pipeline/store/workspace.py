"""Private directories under `tmp/`, each held by a lease, and the sweep of those that crashed.

    tmp/<random>/           0700
        lease.json          who made it; an advisory lock is held on it while it is in use
        output/ scratch/    for the stage
        record.json         for a moment, while a result is published

A lock that does nothing (some network file systems) must not cost a running stage its directory,
so a free lock alone proves nothing: the maker must be known to be gone as well, or the directory
must be a week old. Only directories that this module could have made are ever deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.hashing import canonical_json
from pipeline.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator

LEASE_FILE = "lease.json"
RECORD_FILE = "record.json"

STALE_AFTER_S = 7 * 24 * 3600.0
"""Age at which a directory whose maker cannot be asked is taken to be abandoned: longer than any
build, short enough to give the disk back."""

SETTLING_S = 3600.0
"""Age at which something without a lease is abandoned: its maker writes the lease at once."""

_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where one stage runs.

    Attributes:
        path: The private directory itself, on the store's file system.
        output: Empty at first; `Store.publish` moves it into the store.
        scratch: Empty at first; deleted with the rest.
    """

    path: Path
    output: Path
    scratch: Path


@contextmanager
def open_workspace(parent: Path) -> Iterator[Workspace]:
    """A new private directory under `parent`, deleted on the way out.

    What cannot be deleted (something still writes there) is left for a later sweep: an error here
    would hide the one that led out of the block.

    Raises:
        OSError: when it cannot be made.
    """
    path = parent / unique_name()
    files.make_directory(path, 0o700)
    try:
        lease = _take_lease(path)
        try:
            workspace = Workspace(path=path, output=path / "output", scratch=path / "scratch")
            files.make_directory(workspace.output)
            files.make_directory(workspace.scratch)
            yield workspace
        finally:
            os.close(lease)
    finally:
        _delete(path)


def unique_name() -> str:
    """128 random bits, as 32 hex digits."""
    return os.urandom(16).hex()


def sweep(parent: Path) -> tuple[Path, ...]:
    """Delete what crashed runs left under `parent`.

    Returns:
        What was deleted. Directories in use, by this or another process, are not touched.
    """
    try:
        paths = sorted(parent.iterdir())
    except FileNotFoundError:
        return ()
    return tuple(path for path in paths if _NAME.fullmatch(path.name) and _sweep_one(path))


def _sweep_one(path: Path) -> bool:
    try:
        if not path.is_dir():  # a file that was to be renamed into place
            if not is_old(path, SETTLING_S):
                return False
            path.unlink()
            return True
        if not (path / LEASE_FILE).exists():  # its maker may be about to write the lease
            return is_old(path, SETTLING_S) and _delete(path)
        lease = os.open(path / LEASE_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if _is_locked_by_other(lease) or not _is_abandoned(path):
                return False
            return _delete(path)
        finally:
            os.close(lease)
    except OSError:  # gone meanwhile, or not ours to delete: sweeping is best effort
        return False


def _take_lease(path: Path) -> int:
    """Write and lock the lease; the descriptor holds the lock, and is not inherited by exec."""
    files.create(path / LEASE_FILE, canonical_json(_owner()).encode())
    lease = os.open(path / LEASE_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    _is_locked_by_other(lease)  # no answer is needed: without locks the owner's id protects us
    return lease


def _is_locked_by_other(lease: int) -> bool:
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    return False


def _owner() -> dict[str, str | int]:
    return {
        "node": platform.node(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": os.getpid(),
    }


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    """Process ids mean something only within one namespace: containers share a boot."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_abandoned(path: Path) -> bool:
    """Whether the maker is gone: its process ended, or its machine was started anew since."""
    try:
        owner = json.loads((path / LEASE_FILE).read_bytes())
        node, boot, namespace, pid = (owner[k] for k in ("node", "boot", "namespace", "pid"))
    except (ValueError, TypeError, KeyError):
        return is_old(path)
    if node == platform.node() and boot and boot != _boot():
        return True
    if (node, boot, namespace) != (platform.node(), _boot(), _namespace()):
        return is_old(path)
    return not _is_running(pid)


def _is_running(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def is_old(path: Path, age_s: float = STALE_AFTER_S) -> bool:
    """Old by the newest of its own time stamp and those of what is directly in it."""
    newest = path.lstat().st_mtime
    if path.is_dir():
        newest = max([newest, *(child.lstat().st_mtime for child in path.iterdir())])
    return time.time() - newest > age_s


def _delete(path: Path) -> bool:
    import shutil

    shutil.rmtree(path, ignore_errors=True)  # does not follow links (dir_fd based)
    return not path.exists()
