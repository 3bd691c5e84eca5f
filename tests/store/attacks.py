"""Attacks on a store: kills, failing calls, power cuts, damage, races. Each yields what it broke.

The same attacks run against the store, where they must yield nothing, and against copies of it
with one mistake built in, where they must yield something (`test_mutants.py`). As a program,
`python attacks.py ATTACK DIRECTORY` prints the first violation, if there is one.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import filelock as _filelock  # noqa: F401 - before any fork, as it takes longer than the races last

from pipeline.errors import PipelineError, StoreError
from pipeline.hashing import tagged_digest
from pipeline.store import KEY_TAG, MANIFEST_FILE, StageRecord, Store, files

# Loaded before any fork, so that a child makes no calls but those of the store.
from tests.store import damages
from tests.store import power_cut as power

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEAM = ("make_directory", "create", "sync", "make_read_only", "rename_new", "replace")
CONTENT = {"model.onnx": b"graph" * 40, "model.onnx_data": b"w" * 3000, "tokenizer/vocab.txt": b""}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def preimage(name: str = "export") -> dict[str, object]:
    return {"stage": name, "version": 1, "config": {"opset": 20, "optimise": [True, None, 0.5]}}


def key_of(name: str = "export") -> str:
    return tagged_digest(KEY_TAG, preimage(name))


def write_output(output: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        (output / path).parent.mkdir(exist_ok=True)
        (output / path).write_bytes(data)


def build(
    store: Store, name: str = "export", content: dict[str, bytes] | None = None
) -> StageRecord:
    """What the executor does for one node that is not in the store."""
    with store.lock(key_of(name)), store.workspace() as workspace:
        write_output(workspace.output, CONTENT if content is None else content)
        record = store.publish(
            key=key_of(name),
            preimage=preimage(name),
            output=workspace.output,
            facts={"fused": {"attention": 6}, "skipped": []},
            wall_time_s=1.5,
            peak_rss_mib=300.0,
        )
    store.remember(f"recipe/{name}", record.key)
    return record


def read_tree(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != MANIFEST_FILE
    }


def visible_problems(root: Path, content: dict[str, bytes] = CONTENT) -> Iterator[str]:
    """Promise: a name that is visible is complete, and what is served is what was put in."""
    try:
        store = Store(root)
        yield from store.verify()
        record = store.find(key_of())
        tree = record and store.open_tree(record.tree)
    except PipelineError as err:
        yield f"the store cannot be opened: {err}"
        return
    if record is not None and tree is None:
        yield "a record was published whose tree is not there"
    if tree is not None and read_tree(tree) != content:
        yield "another content was served than was put in"


def resume_problems(root: Path) -> Iterator[str]:
    """Promise: the next run goes through, and leaves nothing behind."""
    store = Store(root)
    record = store.find(key_of())
    if record is None or store.open_tree(record.tree) is None:
        try:
            record = build(store)
        except PipelineError as err:
            yield f"the next run fails: {err}"
            return
    tree = store.open_tree(record.tree)
    if tree is None or read_tree(tree) != CONTENT:
        yield "the next run has no result"
    yield from store.verify()
    with Store(root).workspace():  # the first write of a process sweeps
        pass
    for path in (root / "v1" / "tmp").iterdir():  # the crumbs of a kill before the lease: later
        if path.is_dir() and any(path.rglob("*/*")):
            yield f"left behind: {path}"


# ------------------------------------------------------------------ kills and failing calls


@contextmanager
def watched_seam(watch: Callable[[str, tuple[object, ...]], None]) -> Iterator[None]:
    """Call `watch(name, arguments)` before each call that changes the disk."""
    originals = {name: getattr(files, name) for name in SEAM}

    def wrap(name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            watch(name, arguments)
            originals[name](*arguments)

        return call

    for name in SEAM:
        setattr(files, name, wrap(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(files, name, original)


def scene_fresh(root: Path) -> None:
    """Nothing is there yet."""


def scene_damaged(root: Path) -> None:
    """The result is filed already, and its tree is damaged."""
    record = build(Store(root))
    victim = root / "v1" / "trees" / record.tree / "model.onnx"
    victim.chmod(0o644)
    victim.write_bytes(b"GRAPH" * 40)


def rebuild(root: Path) -> None:
    """What a run does; it meets every branch of the scene."""
    store = Store(root)
    record = store.find(key_of())
    if record is None or store.open_tree(record.tree) is None:
        build(store)


def rebuild_unaware(root: Path) -> None:
    """A run that looked before the damage was done, and publishes into it."""
    build(Store(root))


SCENARIOS = (
    (scene_damaged, rebuild_unaware),
    (scene_damaged, rebuild),
    (scene_fresh, rebuild),
)


def _every_point(
    directory: Path, run: Callable[[Callable[[Path], None], Path, int], bool]
) -> Iterator[tuple[str, Path, bool]]:
    """Call `run(story, root, n)` for n = 1, 2, ... until the story runs to its end."""
    for scene, story in SCENARIOS:
        template, root = directory / "template", directory / "root"
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir(parents=True)
        scene(template)
        for point in itertools.count(1):
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(template, root)
            is_stopped = run(story, root, point)
            yield f"{scene.__name__}, {story.__name__}, call {point}", root, is_stopped
            if not is_stopped:
                break


def attack_kill(directory: Path) -> Iterator[str]:
    """SIGKILL before every call, and in the middle of every write."""
    for is_torn in (False, True):
        run = partial(_run_killed, is_torn)
        for where, root, is_stopped in _every_point(directory, run):
            if not is_stopped and not _is_served(root):
                yield f"{where}: ran to its end without a result"
            problems = itertools.chain(problems_after_scene(root), resume_problems(root))
            yield from (f"killed at {where}: {problem}" for problem in problems)


def _run_killed(is_torn: bool, story: Callable[[Path], None], root: Path, point: int) -> bool:
    calls = itertools.count(1)

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        if is_torn and name != "create":
            return
        if next(calls) == point:
            if is_torn:
                path, content = arguments
                Path(path).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        with watched_seam(watch):
            story(root)

    return in_child(child) == -signal.SIGKILL


def attack_fail(directory: Path, codes: tuple[int, ...] = (errno.ENOSPC,)) -> Iterator[str]:
    """Every call fails once; the error must be told, and the store must stay whole."""
    for code in codes:
        outcome = Outcome()
        run = partial(_run_failing, code, outcome)
        for where, root, _ in _every_point(directory, run):
            what = f"{errno.errorcode[code]} at {where} ({outcome.call})"
            error = str(outcome.error or "")
            if not error and not _is_served(root):
                yield f"{what}: no error was raised, and nothing was published"
            if error and code in NO_SPACE and "bytes needed" not in error:
                yield f"{what}: the message has no numbers: {error}"
            yield from (f"{what}: left behind: {path}" for path in (root / "v1").glob("tmp/*"))
            problems = itertools.chain(problems_after_scene(root), resume_problems(root))
            yield from (f"{what}: {problem}" for problem in problems)


@dataclass
class Outcome:
    """The call that failed, and what became of it."""

    call: str = ""
    error: StoreError | None = None


def _run_failing(
    code: int, outcome: Outcome, story: Callable[[Path], None], root: Path, point: int
) -> bool:
    calls = itertools.count(1)
    outcome.call, outcome.error = "", None

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        if next(calls) == point:
            outcome.call = f"{name} {arguments[0]}"
            raise OSError(code, os.strerror(code))

    try:
        with watched_seam(watch):
            story(root)
    except StoreError as err:
        outcome.error = err
    return outcome.call != ""


def _is_served(root: Path) -> bool:
    """Writing a hint, or setting damage aside, may fail in silence when the result is there."""
    store = Store(root)
    record = store.find(key_of())
    return record is not None and store.open_tree(record.tree) is not None


def problems_after_scene(root: Path) -> Iterator[str]:
    """As `visible_problems`, but damage of the scene may still be there, and must be refused."""
    store = Store(root)
    record = store.find(key_of())
    tree = record and store.open_tree(record.tree)  # sets the scene's damage aside
    if tree is not None and read_tree(tree) != CONTENT:
        yield "another content was served than was put in"
    was_damaged = any((root / "v1").glob("quarantine/*"))
    if record is not None and tree is None and not was_damaged:
        yield "a record was published whose tree is not there"
    for problem in store.verify():
        if not (was_damaged and problem.endswith("is missing")):
            yield problem


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked child that did this work; minus the signal when one ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------ power cut


def attack_power_cut(directory: Path) -> Iterator[str]:
    """Every state that a power cut between any two calls may leave, by POSIX's weak promises."""
    root = directory / "recorded"
    root.mkdir()
    trace = power.Trace(root)
    with watched_seam(trace.watch):
        store = Store(root)
        with store.workspace() as workspace:
            write_output(workspace.output, CONTENT)
            trace.stage_wrote(workspace.output, CONTENT)
            store.publish(
                key=key_of(),
                preimage=preimage(),
                output=workspace.output,
                facts={},
                wall_time_s=1.0,
                peak_rss_mib=1.0,
            )
    seen: set[power.Snapshot] = set()
    for step, snapshot in trace.iter_crashes():
        is_last = step == len(trace.calls)
        if snapshot in seen and not is_last:
            continue
        seen.add(snapshot)
        crashed = directory / "crashed"
        shutil.rmtree(crashed, ignore_errors=True)
        power.restore(snapshot, crashed)
        where = f"power cut after call {step} {trace.describe(step)}"
        yield from (f"{where}: {problem}" for problem in visible_problems(crashed))
        if is_last and Store(crashed).find(key_of()) is None:
            yield f"{where}: the result had been published and is gone"
        yield from (f"{where}: {problem}" for problem in resume_problems(crashed))


# ------------------------------------------------------------------ damage


def attack_damage(directory: Path, flips: int = 30, seed: int = 0) -> Iterator[str]:
    """Bit rot, truncation, links, extra and missing files: found, set aside, rebuilt."""
    template, root = directory / "whole", directory / "damaged"
    record = build(Store(template))
    other = build(Store(template), "other", {"model.onnx": b"other"})
    for what, damage in damages.iter_damages(record, other, random.Random(seed), flips):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        opened = Store(root)  # this one has verified the tree before the damage is done
        opened.open_tree(record.tree)
        damage(root / "v1")
        if not Store(root).verify():
            yield f"{what}: `verify` does not see it"
        for store in (opened, Store(root)):
            found = store.find(key_of())
            if found is not None and found != record:
                yield f"{what}: another record was served"
            if found is not None and store.open_tree(found.tree) is not None:
                yield f"{what}: it was served"
        if not any((root / "v1" / "quarantine").iterdir()):
            yield f"{what}: it was not set aside"
        build(Store(root))
        yield from (f"{what}, rebuilt: {problem}" for problem in visible_problems(root))


# ------------------------------------------------------------------ races


def attack_race(
    directory: Path, *, rounds: int = 6, workers: int = 4, has_locks: bool = False
) -> Iterator[str]:
    """Processes that build the same keys at once, each another content; locks may do nothing."""
    for number in range(rounds):
        root, seen = directory / f"race{number}", directory / f"seen{number}"
        seen.mkdir()
        start = time.monotonic() + 0.01
        stagger_s = 0.003 * (number % 2)  # in odd rounds the later ones start while others build
        pids = []
        for worker in range(workers):
            pid = os.fork()
            if pid == 0:
                _race(root, seen, worker, start + worker * stagger_s, has_locks=has_locks)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        errors = "; ".join(file.read_text() for file in seen.glob("error-*"))
        if any(codes):
            yield f"round {number}: a process failed: {codes} {errors}"
        yield from Store(root).verify()
        for name in ("a", "b"):
            results = {file.read_text() for file in seen.glob(f"{name}-*")}
            if len(results) != 1:
                yield f"round {number}: processes went on with {len(results)} results of one key"
            builds = len(list(seen.glob(f"built-{name}-*")))
            if has_locks and builds != 1:
                yield f"round {number}: one key was built {builds} times in spite of locks"
        yield from (f"left behind: {path}" for path in (root / "v1" / "tmp").iterdir())


def _race(root: Path, seen: Path, worker: int, start: float, *, has_locks: bool) -> None:
    code = 99
    try:
        if not has_locks:
            fcntl.flock = lambda *_: None  # as on Lustre and some NFS: everyone gets the lock
        store = Store(root)
        time.sleep(max(0.0, start - time.monotonic()))
        for name in ("a", "b") if worker % 2 else ("b", "a"):
            with store.lock(key_of(name)):
                record = store.find(key_of(name))
                if record is None:
                    (seen / f"built-{name}-{worker}").touch()
                    record = build_slowly(store, name, worker)
                tree = store.open_tree(record.tree)
            (seen / f"{name}-{worker}").write_text(f"{record.tree} {tree}")
        code = 0
    except (PipelineError, OSError, ValueError) as err:
        (seen / f"error-{worker}").write_text(f"{type(err).__name__}: {err}")
    finally:
        os._exit(code)


def build_slowly(store: Store, name: str, worker: int) -> StageRecord:
    """Takes long enough for another process to sweep, and yields another content each time."""
    with store.workspace() as workspace:
        time.sleep(0.01)
        write_output(workspace.output, {"model.onnx": f"{name} {worker}".encode()})
        return store.publish(
            key=key_of(name),
            preimage=preimage(name),
            output=workspace.output,
            facts={},
            wall_time_s=0.0,
            peak_rss_mib=0.0,
        )


ATTACKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "kill": attack_kill,
    "fail": attack_fail,
    "power_cut": attack_power_cut,
    "damage": attack_damage,
    "race": attack_race,
}


def main() -> None:
    attack, directory = sys.argv[1:]
    sys.stderr.write(f"under attack: {files.__file__}\n")
    with suppress(StopIteration):
        sys.stdout.write(next(ATTACKS[attack](Path(directory))) + "\n")


if __name__ == "__main__":
    main()
