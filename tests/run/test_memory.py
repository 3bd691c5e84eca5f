"""Memory of a stage's processes together: what a fork shares is there once, what it adds counts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.run.process import group_resident_mib

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE_MIB = 200
HELD = f"held = bytearray({SIZE_MIB << 20}); held[::4096] = b'x' * len(held[::4096])"
WAIT = "print('ready', flush=True); sys.stdin.read()"
SHARED = f"import os, sys; {HELD}\nif os.fork() == 0: {WAIT}\nelse: os.wait()"
ADDED = f"import os, sys\nif os.fork() == 0: {HELD}; {WAIT}\nelse: os.wait()"
STARTED = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''import sys; {HELD}; {WAIT}'''])"


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that has a child, both ready."""
    with subprocess.Popen(
        [sys.executable, "-c", request.param], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    "running", [SHARED, ADDED, STARTED], ids=["shared", "added", "started"], indirect=True
)
def test_memory_is_counted_once_wherever_it_is(running: int) -> None:
    assert SIZE_MIB <= group_resident_mib(running) < SIZE_MIB + 80
