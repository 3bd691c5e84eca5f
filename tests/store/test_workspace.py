from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.store import workspace as module
from pipeline.store.workspace import LEASE_FILE, open_workspace, sweep
from tests.store.attacks import in_child


def abandon(parent: Path) -> Path:
    """What a killed process leaves behind."""

    def child() -> None:
        with open_workspace(parent) as workspace:
            (workspace.output / "model.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL
    (path,) = parent.iterdir()
    return path


def grow_old(path: Path, age_s: float) -> None:
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - age_s,) * 2, follow_symlinks=False)


def test_a_workspace_is_private_empty_and_gone_afterwards(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        assert workspace.path.stat().st_mode & 0o777 == 0o700
        assert list(workspace.output.iterdir()) == list(workspace.scratch.iterdir()) == []
        (workspace.scratch / "x").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stage"), open_workspace(tmp_path):
        raise RuntimeError("stage")
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_workspace_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tmp").mkdir()
    with open_workspace(tmp_path / "tmp") as workspace:
        (workspace.output / "link").symlink_to(tmp_path / "kept")
    assert (tmp_path / "kept" / "file").exists()


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    path = abandon(tmp_path)
    assert sweep(tmp_path) == (path,)
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_in_use_is_not_swept_by_this_or_another_process(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        grow_old(workspace.path, 30 * 24 * 3600)
        assert sweep(tmp_path) == ()
        assert in_child(lambda: os._exit(len(sweep(tmp_path)))) == 0
        assert workspace.output.is_dir()


def test_where_locks_do_nothing_a_living_maker_protects_its_workspace(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with open_workspace(tmp_path) as workspace:
        assert sweep(tmp_path) == ()
        assert workspace.output.is_dir()
    path = abandon(tmp_path)
    assert sweep(tmp_path) == (path,)


@pytest.mark.parametrize(
    ("changed", "is_swept_young", "is_swept_old"),
    [
        ({"boot": "another boot of this machine"}, True, True),
        ({"node": "another machine"}, False, True),
        ({"namespace": "another container"}, False, True),
        ({"pid": 1}, False, False),
        ({"pid": "1"}, True, True),
    ],
)
def test_the_maker_is_asked_before_anything_is_swept(
    changed: dict[str, object], is_swept_young: bool, is_swept_old: bool, tmp_path: Path
) -> None:
    for age_s, is_swept in ((0, is_swept_young), (module.STALE_AFTER_S + 60, is_swept_old)):
        path = abandon(tmp_path)
        owner = json.loads((path / LEASE_FILE).read_text())
        (path / LEASE_FILE).write_text(json.dumps({**owner, **changed}))
        grow_old(path, age_s)
        assert sweep(tmp_path) == ((path,) if is_swept else ())
        module._delete(path)


def test_a_directory_whose_lease_is_about_to_be_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / module.unique_name()
    path.mkdir()
    assert sweep(tmp_path) == ()
    grow_old(path, module.SETTLING_S + 60)
    assert sweep(tmp_path) == (path,)


def test_a_lease_that_cannot_be_read_counts_as_unknown(tmp_path: Path) -> None:
    path = abandon(tmp_path)
    (path / LEASE_FILE).write_bytes(b"\0")
    assert sweep(tmp_path) == ()
    grow_old(path, module.STALE_AFTER_S + 60)
    assert sweep(tmp_path) == (path,)


def test_names_that_are_not_ours_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "notes.txt").touch()
    grow_old(tmp_path, 365 * 24 * 3600)
    assert sweep(tmp_path) == ()
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "notes.txt"}


def test_a_link_with_a_name_of_ours_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "output").mkdir(parents=True)
    parent = tmp_path / "tmp"
    parent.mkdir()
    (parent / module.unique_name()).symlink_to(target)
    grow_old(tmp_path, 365 * 24 * 3600)
    sweep(parent)
    assert (target / "output").is_dir()
