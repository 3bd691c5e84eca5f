"""The store withstands every attack; `test_mutants.py` shows that the attacks can win."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.store import attacks

if TYPE_CHECKING:
    from pathlib import Path


def test_a_kill_before_or_within_any_call_leaves_a_store_that_can_go_on(fast_path: Path) -> None:
    assert list(attacks.attack_kill(fast_path)) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failure_of_any_call_is_told_and_leaves_a_store_that_can_go_on(
    code: int, fast_path: Path
) -> None:
    assert list(attacks.attack_fail(fast_path, (code,))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EACCES], ids=errno.errorcode.get
)
def test_other_failures_of_any_call_are_told_as_well(code: int, fast_path: Path) -> None:
    assert list(attacks.attack_fail(fast_path, (code,))) == []


def test_a_power_cut_after_any_call_leaves_nothing_visible_that_is_incomplete(
    fast_path: Path,
) -> None:
    assert list(attacks.attack_power_cut(fast_path)) == []


def test_damage_of_every_kind_is_found_and_set_aside_and_rebuilt(fast_path: Path) -> None:
    assert list(attacks.attack_damage(fast_path)) == []


@pytest.mark.slow
def test_no_flipped_bit_is_ever_served(fast_path: Path) -> None:
    assert list(attacks.attack_damage(fast_path, flips=2000, seed=1)) == []


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "locks that do nothing"])
def test_processes_that_build_one_key_at_once_agree_on_one_result(
    has_locks: bool, fast_path: Path
) -> None:
    assert list(attacks.attack_race(fast_path, has_locks=has_locks)) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "locks that do nothing"])
def test_many_races(has_locks: bool, workers: int, fast_path: Path) -> None:
    attack = attacks.attack_race(fast_path, rounds=70, workers=workers, has_locks=has_locks)
    assert list(attack) == []
