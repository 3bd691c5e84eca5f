"""The store: stage results by key, immutable output directories by digest.

What is visible under `trees/` or `ac/` is complete and matches its digest, after any kill, full
disk or power cut; what is damaged later is found, set aside and never served. Correctness rests on
the order of a handful of calls and on digests, never on a lock or a clock.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, StoreError
from pipeline.hashing import tagged_digest
from pipeline.manifest import scan_directory
from pipeline.store import files
from pipeline.store.attempts import end_attempt, open_attempt, sweep_attempts
from pipeline.store.faults import free_bytes, store_error
from pipeline.store.layout import MANIFEST_FILE, Layout, read_limited
from pipeline.store.records import (
    KEY_TAG,
    StageRecord,
    decode_record,
    encode_record,
    is_sha256,
    normalise_json,
    require_sha256,
)
from pipeline.store.trees import DAMAGE, MAX_SMALL_BYTES, TAKEN, Trees, set_aside
from pipeline.store.workspace import (
    RECORD_FILE,
    Workspace,
    open_workspace,
    sweep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.manifest import Manifest

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.ESTALE})
"""What a file system without working locks answers; we go on, since only work can be doubled."""


class Store:
    """A directory of stage results, shared by any number of processes and threads.

    Nothing is created before the first write, so a store that can only be read serves its hits.

    Args:
        root: Its directory; need not be there yet.
        is_trusted: Take trees as they are, without hashing them (`--trust-store`).

    Raises:
        StoreError: when another version of convert made what is there.
    """

    def __init__(self, root: Path, *, is_trusted: bool = False) -> None:
        self.root = root
        self.is_trusted = is_trusted
        self._layout = Layout(root.resolve())
        self._trees = Trees(self._layout)
        self._is_ready = False
        self._layout.check_version()

    def find(self, key: str) -> StageRecord | None:
        """The record of a key, or None. Its tree is there, but not verified: see `open_tree`.

        A damaged record is set aside and is a miss; so is one whose tree was set aside, since
        the result must be made anew.

        Raises:
            ValueError: when the key is not a full SHA-256.
            StoreError: when the store cannot be read.
        """
        record = self._find_record(key)
        if record is None or not os.path.lexists(self._layout.tree(record.tree)):
            return None
        return record

    def open_tree(self, digest: str) -> Path | None:
        """The directory of a tree, every byte of it verified, or None. Never write to it.

        Within one process a tree is hashed once; afterwards only names, inodes, sizes and time
        stamps are compared. A damaged tree is set aside and is a miss.

        Raises:
            ValueError: when the digest is not a full SHA-256.
            StoreError: when it cannot be read, because of permissions or too many open files.
        """
        require_sha256(digest, "tree")
        if self.is_trusted:
            path = self._layout.tree(digest)
            return path if path.is_dir() else None
        return self._trees.open(digest)

    def open_trees(self, digests: Iterable[str]) -> dict[str, Path | None]:
        """`open_tree` of many at once: hashing releases the GIL, so two cores do twice as much."""
        from concurrent.futures import ThreadPoolExecutor

        unique = tuple(dict.fromkeys(digests))
        with ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="tree") as pool:
            return dict(zip(unique, pool.map(self.open_tree, unique), strict=True))

    def remembered(self, address: str) -> StageRecord | None:
        """The record of the last key that a node had; for explaining, as its tree may be gone."""
        key = self._last_key(address)
        return self._find_record(key) if is_sha256(key) else None

    def verify(self) -> tuple[str, ...]:
        """Check everything that is visible; nothing is changed or set aside.

        Returns:
            Problems as sentences, each naming its tree or record. Empty: all is well.

        Raises:
            StoreError: when the store cannot be read.
        """
        try:
            return (*self._iter_tree_problems(), *self._iter_record_problems())
        except OSError as err:
            raise store_error(err, "verifying the store", self.root) from err

    def free_bytes(self) -> int:
        """Bytes that may still be written on the store's file system.

        Raises:
            StoreError: when the file system does not say.
        """
        try:
            return free_bytes(self._layout.base)
        except OSError as err:
            raise store_error(err, "looking for free space", self.root) from err

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """A private place for one stage, on the store's file system; deleted on the way out.

        The first write of a process also deletes what crashed runs left behind.

        Raises:
            StoreError: when the store cannot be written.
        """
        self._prepare()
        with ExitStack() as stack:
            try:
                workspace = stack.enter_context(open_workspace(self._layout.tmp))
            except OSError as err:
                raise store_error(err, "making a workspace", self.root, need_bytes=4096) from err
            yield workspace

    def attempt(self, key: str) -> Path:
        """A directory that outlives a failed or killed attempt; hold the lock of the work meanwhile.

        What lies in it is of earlier attempts and is not to be trusted. It is deleted by
        `end_attempt`, or when nothing in it has changed for a week.

        Raises:
            ValueError: when the key is not a full SHA-256.
            StoreError: when the store cannot be written.
        """
        require_sha256(key, "key")
        self._prepare()
        try:
            return open_attempt(self._layout.attempts, key)
        except OSError as err:
            raise store_error(
                err, "making a place to resume from", self.root, need_bytes=4096
            ) from err

    def end_attempt(self, key: str) -> None:
        """Delete what attempts have left under a key: the work is done."""
        require_sha256(key, "key")
        end_attempt(self._layout.attempts, key)

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep other processes from building the same key meanwhile.

        It only saves double work. Where the file system has no locks, the block runs without one.

        Args:
            key: The stage key.
            on_wait: Called once, when someone else holds the lock, before waiting for it.

        Raises:
            StoreError: when the store cannot be written.
        """
        require_sha256(key, "key")
        self._prepare()
        import filelock  # 60 ms that a run without a miss does not need

        lock = filelock.FileLock(
            self._layout.lock(key), thread_local=False, fallback_to_soft=False
        )
        try:
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                if on_wait is not None:
                    on_wait()
                lock.acquire()
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise store_error(err, "taking a lock", self.root, need_bytes=4096) from err
        try:
            yield
        finally:
            lock.release()

    def remember(self, address: str, key: str) -> None:
        """Note the key that a node has now. A store that cannot be written forgets it.

        Losing the note costs one sentence of `plan --explain` and no result, so no failure here
        may stop a run.
        """
        require_sha256(key, "key")
        if self._last_key(address) == key:
            return
        with suppress(OSError):
            self._layout.write_over(self._layout.hint(address), f"{key}\n".encode())

    def publish(
        self,
        *,
        key: str,
        preimage: Mapping[str, JSON],
        output: Path,
        facts: Mapping[str, JSON],
        wall_time_s: float,
        peak_rss_mib: float,
    ) -> StageRecord:
        """Move a finished output directory into the store and file it under its key.

        Every process that wrote to `output` must be gone. When someone else filed the same key
        meanwhile and their tree is whole, theirs stays and is returned, so that all processes go
        on with the same bytes.

        Args:
            key: `tagged_digest(KEY_TAG, preimage)`.
            preimage: Everything that could change the output.
            output: `output` of a workspace of this store; it is gone afterwards.
            facts: What the stage says of its output; JSON.
            wall_time_s: How long it took.
            peak_rss_mib: How much memory it took.

        Returns:
            The record that is filed now. Its tree is verified.

        Raises:
            ValueError: when the key is not the digest of the preimage, or `output` is elsewhere.
            ArtifactError: when the output or the facts are not fit to be kept.
            StoreError: when the disk is full, or anything else keeps it from being durable.
        """
        require_sha256(key, "key")
        if tagged_digest(KEY_TAG, preimage) != key:
            raise ValueError(f"key {key} is not the digest of its preimage")
        if output.resolve().parent.parent != self._layout.tmp:
            raise ValueError(f"{output} is not the output of a workspace of this store")
        try:
            normal_preimage, normal_facts = normalise_json(preimage), normalise_json(facts)
        except (TypeError, ValueError) as err:
            raise ArtifactError(f"the facts of a stage are not JSON: {err}") from err
        manifest = _scan_output(output)
        record = StageRecord(
            key=key,
            preimage=normal_preimage,
            tree=manifest.digest,
            facts=normal_facts,
            wall_time_s=float(wall_time_s),
            peak_rss_mib=float(peak_rss_mib),
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        try:
            self._trees.publish(output, manifest)
            return self._publish_record(record, output.parent)
        except OSError as err:
            need_bytes = manifest.size_bytes + len(manifest.to_json())
            raise store_error(
                err, "publishing a result", self.root, need_bytes=need_bytes
            ) from err

    def _prepare(self) -> None:
        if not self._is_ready:
            self._layout.create()
            sweep(self._layout.tmp)
            sweep_attempts(self._layout.attempts)
            self._is_ready = True

    def _publish_record(self, record: StageRecord, private: Path) -> StageRecord:
        target = self._layout.record(record.key)
        temporary = private / RECORD_FILE
        files.create(temporary, encode_record(record))
        files.sync(temporary)
        try:
            files.rename_new(temporary, target)
        except OSError as err:
            if err.errno not in TAKEN:
                raise
            theirs = self.find(record.key)
            if theirs is not None and self._trees.open(theirs.tree) is not None:
                record = theirs
            else:
                files.replace(temporary, target)
        files.sync(self._layout.records)  # also when it is theirs, which may not be durable yet
        return record

    def _find_record(self, key: str) -> StageRecord | None:
        require_sha256(key, "key")
        path = self._layout.record(key)
        try:
            inode = path.lstat().st_ino
            return _read_record(path, key)
        except FileNotFoundError:
            return None
        except StoreError:
            set_aside(self._layout, path, inode)
            return None
        except OSError as err:
            raise store_error(err, "reading a record", self.root) from err

    def _last_key(self, address: str) -> str:
        with suppress(OSError):
            content = read_limited(self._layout.hint(address), 1024) or b""
            return content.decode(errors="replace").strip()
        return ""

    def _iter_tree_problems(self) -> Iterator[str]:
        for name in _names(self._layout.trees):
            if not is_sha256(name):
                yield f"trees/{name}: not a tree"
                continue
            for problem in self._trees.problems(name):
                yield f"trees/{name}: {problem}"

    def _iter_record_problems(self) -> Iterator[str]:
        for name in _names(self._layout.records):
            key = name.removesuffix(".json")
            if not is_sha256(key) or name != f"{key}.json":
                yield f"ac/{name}: not a record"
                continue
            try:
                record = _read_record(self._layout.record(key), key)
            except StoreError as err:
                yield f"ac/{name}: {err.message}"
                continue
            if not self._layout.tree(record.tree).is_dir():
                yield f"ac/{name}: its tree {record.tree} is missing"


def _read_record(path: Path, key: str) -> StageRecord:
    """Read and check one record.

    Raises:
        StoreError: when it is damaged.
        OSError: when it is not there, or cannot be read for a reason that is not damage.
    """
    try:
        content = read_limited(path, MAX_SMALL_BYTES)
    except OSError as err:
        if err.errno in DAMAGE:
            raise StoreError(f"damaged record: {err.strerror}") from err
        raise
    if content is None:
        raise StoreError(f"damaged record: longer than {MAX_SMALL_BYTES} bytes")
    return decode_record(content, key)


def _scan_output(output: Path) -> Manifest:
    manifest = scan_directory(output)
    if any(entry.path.casefold() == MANIFEST_FILE.casefold() for entry in manifest.entries):
        raise ArtifactError(f"a stage must not write {MANIFEST_FILE}", where=str(output))
    return manifest


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
