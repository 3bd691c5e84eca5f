from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pipeline.tasks import TASKS
from tests.architectures.conversion import TARGETS, convert_entry
from tests.architectures.zoo import ARCHITECTURES, ENTRIES, Entry

if TYPE_CHECKING:
    from pathlib import Path


def test_the_zoo_has_every_architecture_and_every_task() -> None:
    assert {entry.architecture for entry in ENTRIES} == set(ARCHITECTURES)
    # Decoders have other targets; tests/runtimes/test_torch_decoder.py has their families.
    tasks = {task.name for task in TASKS if not task.has_cache}
    assert {entry.task for entry in ENTRIES} == tasks
    assert max(Counter(map(str, ENTRIES)).values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_every_target_holds_its_gates(entry: Entry, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    rows = convert_entry(entry, tmp_path)
    assert [row.target for row in rows] == list(TARGETS)
    assert [f"{row.target}: {row.reason}" for row in rows if row.reason] == []
