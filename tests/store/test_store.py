from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import ArtifactError, StoreError
from pipeline.hashing import tagged_digest
from pipeline.store import KEY_TAG, MANIFEST_FILE, Store, files, resolve_store_root
from tests.store import attacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store import StageRecord


@pytest.fixture
def store(fast_path: Path) -> Store:
    return Store(fast_path / "store")


def publish(store: Store, **changes: object) -> StageRecord:
    with store.workspace() as workspace:
        attacks.write_output(workspace.output, attacks.CONTENT)
        arguments = {
            "key": attacks.key_of(),
            "preimage": attacks.preimage(),
            "output": workspace.output,
            "facts": {},
            "wall_time_s": 1.0,
            "peak_rss_mib": 1.0,
        }
        return store.publish(**{**arguments, **changes})


def test_what_is_published_is_found_by_another_process_with_all_that_was_said(
    store: Store,
) -> None:
    facts = {"fused": ("attention", 6), "coverage": 0.1 + 0.2, "skipped": None}
    record = publish(store, facts=facts, wall_time_s=2, peak_rss_mib=300)
    other = Store(store.root)
    assert other.find(attacks.key_of()) == record
    assert record.facts == {"fused": ["attention", 6], "coverage": 0.1 + 0.2, "skipped": None}
    assert record.preimage == attacks.preimage()
    assert (record.wall_time_s, record.peak_rss_mib) == (2.0, 300.0)
    tree = other.open_tree(record.tree)
    assert tree is not None
    assert attacks.read_tree(tree) == attacks.CONTENT
    assert other.verify() == ()


def test_files_of_a_tree_are_real_have_one_name_and_are_read_only(store: Store) -> None:
    tree = store.open_tree(publish(store).tree)
    assert tree is not None
    for path in (tree / MANIFEST_FILE, tree / "model.onnx", tree / "tokenizer/vocab.txt"):
        status = path.lstat()
        assert (status.st_mode & 0o777, status.st_nlink) == (0o444, 1)


def test_nothing_is_created_before_the_first_write(store: Store) -> None:
    assert store.find(attacks.key_of()) is None
    assert store.open_tree("0" * 64) is None
    assert store.open_trees(["0" * 64]) == {"0" * 64: None}
    assert store.remembered("recipe/export") is None
    assert store.verify() == ()
    assert store.free_bytes() > 0
    store.remember("recipe/export", attacks.key_of())
    assert not store.root.exists()


def test_an_output_without_files_can_be_published(store: Store) -> None:
    with store.workspace() as workspace:
        record = store.publish(
            key=attacks.key_of(),
            preimage=attacks.preimage(),
            output=workspace.output,
            facts={"p50_ms": 1.5},
            wall_time_s=1.0,
            peak_rss_mib=1.0,
        )
    assert store.open_tree(record.tree) is not None
    assert store.verify() == ()


def test_two_keys_with_the_same_output_share_a_tree(store: Store) -> None:
    first, second = attacks.build(store, "export"), attacks.build(store, "simplify")
    assert first.tree == second.tree
    assert len(list((store.root / "v1" / "trees").iterdir())) == 1


def test_whoever_files_a_key_first_is_followed_by_all_others(store: Store) -> None:
    first = attacks.build(Store(store.root), content={"engine": b"1"})
    second = attacks.build(store, content={"engine": b"2"})  # TensorRT never builds the same twice
    assert second == first


def test_a_record_whose_tree_is_gone_is_replaced(store: Store) -> None:
    first = attacks.build(store, content={"engine": b"1"})
    shutil.rmtree(store.root / "v1" / "trees" / first.tree)
    assert store.open_tree(first.tree) is None
    assert store.find(attacks.key_of()) is None
    assert store.remembered("recipe/export") == first
    second = attacks.build(store, content={"engine": b"2"})
    assert store.find(attacks.key_of()) == second != first
    assert store.verify() == ()


def test_a_key_must_be_the_digest_of_its_preimage(store: Store) -> None:
    with pytest.raises(ValueError, match="is not the digest of its preimage"):
        publish(store, key="0" * 64)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_only_a_full_digest_becomes_part_of_a_path(key: str, store: Store) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.find(key)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.open_tree(key)
    with pytest.raises(ValueError, match="64 lower-case hex digits"), store.lock(key):
        pass


def test_a_record_is_found_by_its_preimage(store: Store) -> None:
    record = publish(store)
    assert tagged_digest(KEY_TAG, record.preimage) == record.key


def test_only_the_output_of_a_workspace_is_published(store: Store, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(ValueError, match="not the output of a workspace"):
        publish(store, output=tmp_path / "output")
    assert (tmp_path / "output").is_dir()


@pytest.mark.parametrize("facts", [{"loss": float("nan")}, {"path": Path("/")}, {"x": {1, 2}}])
def test_facts_that_are_not_json_are_refused(facts: dict[str, object], store: Store) -> None:
    with pytest.raises(ArtifactError, match="facts of a stage are not JSON"):
        publish(store, facts=facts)
    assert store.find(attacks.key_of()) is None


@pytest.mark.parametrize("name", [MANIFEST_FILE, "manifest.json"])
def test_a_stage_may_not_write_the_manifest(name: str, store: Store) -> None:
    with pytest.raises(ArtifactError, match="must not write"):
        attacks.build(store, content={name: b"{}"})
    assert store.verify() == ()


def test_an_output_with_a_link_is_refused_and_nothing_is_left(store: Store) -> None:
    with store.workspace() as workspace:
        (workspace.output / "model.onnx").symlink_to("/etc/hostname")
        with pytest.raises(ArtifactError, match="symbolic link"):
            publish(store, output=workspace.output)
    assert list((store.root / "v1" / "tmp").iterdir()) == []


def test_a_tool_that_writes_beside_its_input_spoils_the_tree_even_within_one_process(
    store: Store,
) -> None:
    record = publish(store)
    tree = store.open_tree(record.tree)
    assert tree is not None
    (tree / "model-inferred.onnx").touch()  # as ONNX Runtime 1.31.1's quantisers do
    assert store.open_tree(record.tree) is None
    assert store.open_tree(record.tree) is None
    assert len(list((store.root / "v1" / "quarantine").iterdir())) == 1


def test_a_tree_is_hashed_once_in_a_process(store: Store, monkeypatch) -> None:
    record = attacks.build(Store(store.root))
    assert store.open_tree(record.tree) is not None
    monkeypatch.setattr("pipeline.store.trees.check_directory", lambda *_, **__: 1 / 0)
    assert store.open_tree(record.tree) is not None


def test_a_trusted_store_is_taken_as_it_is(store: Store) -> None:
    record = publish(store)
    victim = store.root / "v1" / "trees" / record.tree / "model.onnx"
    victim.chmod(0o644)
    victim.write_bytes(b"other")
    assert Store(store.root, is_trusted=True).open_tree(record.tree) == victim.parent
    assert Store(store.root).open_tree(record.tree) is None


def test_many_trees_are_opened_at_once(store: Store) -> None:
    records = [attacks.build(store, str(n), {"x": str(n).encode()}) for n in range(5)]
    opened = Store(store.root).open_trees([*(r.tree for r in records), "0" * 64])
    assert [p and p.name for p in opened.values()] == [*(r.tree for r in records), None]


@pytest.mark.parametrize(
    "call",
    [None, lambda *_: errno.ENOSYS, lambda *_: errno.EINVAL],
    ids=["old C library", "old kernel", "other file system"],
)
def test_without_a_rename_that_never_replaces_results_are_filed_all_the_same(
    call, fast_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(files, "_renameat2", lambda: call)
    root = fast_path / "store"
    attacks.scene_damaged(root)
    attacks.rebuild_unaware(root)
    assert list(attacks.visible_problems(root)) == []
    assert attacks.build(Store(root)).tree == attacks.build(Store(root)).tree
    assert Store(root).verify() == ()


def test_a_store_of_another_version_is_refused_with_a_way_out(store: Store) -> None:
    publish(store)
    (store.root / "v1" / "VERSION").write_text("convert store 9\n")
    with pytest.raises(StoreError, match="convert store 9") as caught:
        Store(store.root)
    assert "CONVERT_STORE" in caught.value.hint


def test_a_store_that_cannot_be_there_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError), Store(tmp_path / "file" / "store").workspace():
        pass


def test_a_store_behind_a_symbolic_link_works(fast_path: Path) -> None:
    (fast_path / "real").mkdir()
    (fast_path / "link").symlink_to("real")
    record = attacks.build(Store(fast_path / "link"))
    assert Store(fast_path / "real").open_tree(record.tree) is not None


@contextmanager
def mounted_read_only(path: Path) -> Iterator[None]:
    """Make a directory read-only even for root, as on a read-only file system."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("mounting a read-only file system needs root")
    if subprocess.run([mount, "--bind", str(path), str(path)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run([mount, "-o", "remount,bind,ro", str(path)], check=True)
        yield
    finally:
        subprocess.run([umount, "-l", str(path)], check=True)


def test_a_store_that_can_only_be_read_serves_hits_and_tells_why_it_cannot_build(
    store: Store,
) -> None:
    attacks.build(store)
    with mounted_read_only(store.root):
        reader = Store(store.root)
        record = reader.find(attacks.key_of())
        assert record is not None
        assert reader.open_tree(record.tree) is not None
        reader.remember("recipe/other", record.key)
        with pytest.raises(StoreError, match="cannot be written") as caught:
            reader.workspace().__enter__()
    assert "CONVERT_STORE" in caught.value.hint


def test_damage_in_a_store_that_can_only_be_read_stays_and_is_never_served(store: Store) -> None:
    first, second = attacks.build(store), attacks.build(store, "other", {"x": b"x"})
    (store.root / "v1" / "trees" / first.tree / "extra").touch()
    damaged = store.root / "v1" / "ac" / f"{second.key}.json"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with mounted_read_only(store.root):
        reader = Store(store.root)
        for _ in range(2):
            assert reader.open_tree(first.tree) is None
            assert reader.find(second.key) is None


def test_the_last_key_of_a_node_is_remembered_until_there_is_another(store: Store) -> None:
    first, second = attacks.build(store, "export"), attacks.build(store, "simplify")
    address = "recipes/a.yaml: fuse@cpu / ünïcode"
    store.remember(address, first.key)
    assert store.remembered(address) == first
    store.remember(address, second.key)
    assert Store(store.root).remembered(address) == second
    assert store.remembered("another") is None


def test_a_damaged_hint_is_forgotten(store: Store) -> None:
    attacks.build(store)
    (hint,) = (store.root / "v1" / "last").iterdir()
    hint.write_bytes(b"\xff\0../..")
    assert store.remembered("recipe/export") is None


def test_whoever_waits_for_a_lock_is_told_once(store: Store) -> None:
    waits: list[str] = []
    is_waiting, order = threading.Event(), []

    def wait() -> None:
        waits.append("wait")
        is_waiting.set()

    def second() -> None:
        with Store(store.root).lock(attacks.key_of(), wait):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.lock(attacks.key_of(), wait):
        thread.start()
        assert is_waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert waits == ["wait"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_does_not_stop_a_build(
    code: int, store: Store, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    record = attacks.build(store)
    assert store.open_tree(record.tree) is not None


def test_a_lock_is_free_again_after_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError, match="stage"), store.lock(attacks.key_of()):
        raise RuntimeError("stage")
    with store.lock(attacks.key_of(), pytest.fail):
        pass


def test_the_root_comes_from_the_environment_or_is_the_users_cache() -> None:
    assert resolve_store_root({"CONVERT_STORE": "/data/store"}) == Path("/data/store")
    assert resolve_store_root({"CONVERT_STORE": "store"}) == Path.cwd() / "store"
    assert resolve_store_root({"CONVERT_STORE": "~/store"}) == Path.home() / "store"
    assert resolve_store_root({}).parts[-2:] == ("convert", "store")


def test_reading_a_hit_imports_nothing_heavy(store: Store) -> None:
    record = publish(store)
    program = (
        "import sys; from pathlib import Path; from pipeline.store import Store;"
        f"s = Store(Path({str(store.root)!r})); r = s.find({record.key!r}); s.open_tree(r.tree);"
        "print(*{'numpy', 'filelock', 'platformdirs', 'logging', 'torch', 'pydantic'}"
        " & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.strip() == ""
