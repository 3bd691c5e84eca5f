"""Gives pages of files back that a library of this process has mapped to read weights from.

They hold what the file holds: the kernel reads them again when they are needed, and takes them back
itself where memory is short. Until then they count as memory of this process, of which a recipe may
allow only so much.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MOST_BYTES: Final = 1 << 29
"""Of mapped files, above which pages are given back."""

_INTERVAL_S: Final = 0.02
_MAPS: Final = Path("/proc/self/smaps")
_PAGES: Final = Path("/proc/self/statm")
_SHARED: Final = 2
"""Place of the resident pages of files among the numbers of `_PAGES` (`man 5 proc_pid_statm`)."""


@contextlib.contextmanager
def few_pages(files: Collection[Path], *, most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """While this lasts, pages of these files are given back whenever too many are in memory.

    Only what nobody has written to is touched. Without `/proc` nothing is done.

    Args:
        files: Which may be mapped, now or later; those that are not there are left out.
        most_bytes: Above so many bytes of mapped files, whichever.
    """
    wanted = {str(file.resolve()) for file in files if file.exists()}
    if not wanted or not _PAGES.exists():
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL_S):
            if _resident_bytes() > most_bytes:
                give_back(wanted)

    watcher = threading.Thread(target=watch, name="few-pages", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def give_back(files: Collection[str]) -> int:
    """Give all pages of some files back, by real path; bytes that were mapped of them.

    What was written to holds numbers that the file does not, and stays. Libraries map weights so that
    they may be written to (ONNX Runtime 1.31 does), whether they are or not: the kernel knows.
    """
    libc, total = ctypes.CDLL(None), 0
    for begin, end in _untouched(files):
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
        total += end - begin
    return total


def _untouched(files: Collection[str]) -> Iterator[tuple[int, int]]:
    """Where these files are mapped and no page is anybody's own (`man 5 proc_pid_smaps`)."""
    place: tuple[int, int] | None = None
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            parts = rest.split(maxsplit=4)
            is_wanted = len(parts) == 5 and parts[4] in files
            begin, _, end = name.partition("-")
            place = (int(begin, 16), int(end, 16)) if is_wanted else None
        elif name == "Anonymous:" and place is not None and rest.split()[0] == "0":
            yield place


def _resident_bytes() -> int:
    return int(_PAGES.read_text("ascii").split()[_SHARED]) * mmap.PAGESIZE
