"""Disks that are full or cannot be written, and processes that may not write much."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import StoreError
from pipeline.store import StageRecord, Store
from tests.store import attacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.store import Workspace


@contextmanager
def limited_file_size(limit_bytes: int) -> Iterator[None]:
    """As `ulimit -f`: a write beyond it fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def publish(store: Store, workspace: Workspace) -> StageRecord:
    return store.publish(
        key=attacks.key_of(),
        preimage=attacks.preimage(),
        output=workspace.output,
        facts={},
        wall_time_s=1.0,
        peak_rss_mib=1.0,
    )


@pytest.mark.parametrize("limit_bytes", [1, 100, 300])
def test_a_write_beyond_the_file_size_limit_is_told_and_never_published(
    limit_bytes: int, fast_path: Path
) -> None:
    root = fast_path / "store"
    store = Store(root)
    with store.workspace() as workspace:
        attacks.write_output(workspace.output, attacks.CONTENT)
        with limited_file_size(limit_bytes), pytest.raises(StoreError, match="EFBIG") as caught:
            publish(store, workspace)
    assert "ulimit -f" in caught.value.hint
    assert Store(root).find(attacks.key_of()) is None
    assert list(attacks.resume_problems(root)) == []


def test_a_store_that_cannot_be_created_in_full_can_be_created_later(fast_path: Path) -> None:
    root = fast_path / "store"
    with (
        limited_file_size(1),
        pytest.raises(StoreError, match="creating the store"),
        Store(root).workspace(),
    ):
        pass
    assert list(attacks.resume_problems(root)) == []


@pytest.fixture
def small_disk(fast_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = fast_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run([umount, "-l", str(path)], check=True)


@pytest.mark.parametrize("left_bytes", [0, 4096, 8192, 12288, 16384, 20480, 24576])
def test_a_full_disk_is_told_with_numbers_and_the_next_run_goes_through(
    left_bytes: int, small_disk: Path
) -> None:
    root = small_disk / "store"
    ballast = small_disk / "ballast"
    with Store(root).workspace():  # so that the store is there already
        pass
    ballast.write_bytes(bytes(Store(root).free_bytes() - left_bytes))
    error = None
    try:
        attacks.build(Store(root))
    except (StoreError, OSError) as err:
        error = err
    if isinstance(error, StoreError):
        assert "disk full" in str(error)
        assert "bytes needed" in str(error)
        assert "CONVERT_STORE" in error.hint
    elif error is not None:  # the stage's own write
        assert error.errno == errno.ENOSPC
    assert list(attacks.visible_problems(root)) == []
    ballast.unlink()
    assert list(attacks.resume_problems(root)) == []
