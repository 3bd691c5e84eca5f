"""Work in a copy of the process: its end is seen, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.forked import Forked

if TYPE_CHECKING:
    from pathlib import Path


def test_work_is_done_elsewhere_and_changes_nothing_here(tmp_path: Path) -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(os.getpid())
        (tmp_path / "pid").write_text(str(os.getpid()))

    assert Forked(work).succeeded()
    assert seen == []
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def _raises() -> None:
    raise ValueError


def _exits() -> None:
    sys.exit(3)


def _is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("work", [_raises, _exits, _is_killed])
def test_whatever_goes_wrong_is_no_success(
    work: object, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(work)
    process = Forked(work)
    assert not process.succeeded()
    assert not process.succeeded()  # asked again, it says the same
    process.end()  # and what has ended needs no end
    assert capfd.readouterr().err == ""


def test_a_system_that_refuses_to_fork_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    process = Forked(_raises)
    assert not process.succeeded()
    process.end()


def test_work_that_is_ended_is_gone(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    process = Forked(work)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    process.end()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
