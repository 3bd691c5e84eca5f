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
_MAPS: Final = Path("/proc/self/maps")
_PAGES: Final = Path("/proc/self/statm")
_SHARED: Final = 2
"""Place of the resident pages of files among the numbers of `_PAGES` (`man 5 proc_pid_statm`)."""


@contextlib.contextmanager
def few_pages(files: Collection[Path], *, most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """While this lasts, pages of these files are given back whenever too many are in memory.

    Only what is mapped for reading is touched. Without `/proc` nothing is done.

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
    """Give all pages of some files back, by real path; bytes that were mapped of them."""
    libc, total = ctypes.CDLL(None), 0
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        # What may be written to could hold numbers that the file does not.
        if len(parts) != 6 or parts[5] not in files or "w" in parts[1]:
            continue
        begin, end = (int(part, 16) for part in parts[0].split("-"))
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
        total += end - begin
    return total


def _resident_bytes() -> int:
    return int(_PAGES.read_text("ascii").split()[_SHARED]) * mmap.PAGESIZE
