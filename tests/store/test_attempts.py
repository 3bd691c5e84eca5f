"""What unfinished stages leave: kept for the next attempt, deleted when done or forgotten."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.store import Store
from pipeline.store.attempts import sweep_attempts
from pipeline.store.workspace import STALE_AFTER_S

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = "a" * 64, "b" * 64


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for each in (*path.iterdir(), path):
        os.utime(each, (then, then))


def test_the_next_attempt_finds_what_the_last_one_left(tmp_path: Path) -> None:
    (Store(tmp_path).attempt(KEY) / "note.json").write_text("1")
    assert (Store(tmp_path).attempt(KEY) / "note.json").read_text() == "1"
    assert list(Store(tmp_path).attempt(OTHER).iterdir()) == []
    assert Store(tmp_path).attempt(KEY).stat().st_mode & 0o777 == 0o700


def test_it_is_gone_when_the_work_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.attempt(KEY) / "note.json").write_text("1")
    kept = store.attempt(OTHER)
    store.end_attempt(KEY)
    store.end_attempt(KEY)  # nothing is there: nothing to do
    assert list(store.attempt(KEY).iterdir()) == []
    assert kept.is_dir()


def test_a_key_is_no_path(tmp_path: Path) -> None:
    for key in ("..", "../trees", "", "A" * 64):
        with pytest.raises(ValueError, match="key"):
            Store(tmp_path).attempt(key)
        with pytest.raises(ValueError, match="key"):
            Store(tmp_path).end_attempt(key)


def test_what_nobody_came_back_to_for_a_week_is_swept(tmp_path: Path) -> None:
    old, fresh = Store(tmp_path).attempt(KEY), Store(tmp_path).attempt(OTHER)
    for path in (old, fresh):
        (path / "note.json").write_text("1")
    foreign = old.parent / "keep"
    foreign.mkdir()
    for path in (old, foreign):
        _age(path, STALE_AFTER_S + 60)
    assert sweep_attempts(old.parent) == (old,)
    assert not old.exists()
    assert fresh.is_dir()
    assert foreign.is_dir()
    assert sweep_attempts(tmp_path / "nothing") == ()


def test_a_store_sweeps_before_its_first_write(tmp_path: Path) -> None:
    old = Store(tmp_path).attempt(KEY)
    _age(old, STALE_AFTER_S + 60)
    Store(tmp_path).attempt(OTHER)
    assert not old.exists()
