"""The executor on real stages: failures of every kind, and nothing wrong is ever filed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.planning import Plan, plan_status
from pipeline.recipe import load_recipe_file
from pipeline.run.events import Event, NodeFailed, NodeFinished, NodeSkipped, NodeStarted
from pipeline.run.local import LocalExecutor
from pipeline.run.outcomes import NodeOutcome
from pipeline.run.worker import PROCESS_NAME
from pipeline.store import Store
from tests.recipes import FP32, INT8, forget, write_recipe


class _Run:
    """One execution of a recipe, with its events kept and a hook on each."""

    def __init__(self, tmp_path: Path, checkpoint: Path, **changes: Any) -> None:
        # Nothing that measures time: these tests are about processes.
        loaded = load_recipe_file(write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes))
        self.store = open_store(BuildOptions(store=tmp_path / "store"))
        self.plan = prepare_plan(loaded, self.store)
        self.events: list[Event] = []
        self.hook: Any = lambda _: None

    def execute(self) -> dict[str, NodeOutcome]:
        executor = LocalExecutor(
            plan=self.plan, store=self.store, listener=self._listen, jobs=2, threads=1
        )
        return {outcome.node.name: outcome for outcome in executor.execute()}

    def _listen(self, event: Event) -> None:
        self.events.append(event)
        self.hook(event)

    def names(self, kind: type) -> list[str]:
        return [self.plan.nodes[e.node].name for e in self.events if isinstance(e, kind)]


def _kill_worker_of(run: _Run, name: str, number: signal.Signals) -> None:
    """Send a signal to the process of a stage as soon as it has begun its work."""

    def hook(event: Event) -> None:
        if isinstance(event, NodeStarted) and run.plan.nodes[event.node].name == name:
            threading.Thread(target=_kill_when_busy, args=(run.store, number)).start()

    run.hook = hook


def _kill_when_busy(store: Store, number: signal.Signals) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in psutil.Process().children(recursive=True):
            try:
                # The worker changes into its scratch directory when its job begins.
                if child.name() == PROCESS_NAME and str(store.root) in child.cwd():
                    os.kill(child.pid, number)
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


def _workers() -> list[psutil.Process]:
    """Those that are left after a moment: a nursery reaps its own."""
    deadline = time.monotonic() + 10
    while left := [
        child
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and child.name() == PROCESS_NAME
    ]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return []


def _hits(plan: Plan, store: Store) -> set[str]:
    return {s.node.name for s in plan_status(plan, store) if s.record is not None}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_stage_is_a_failure_with_its_signal_and_nothing_is_filed(
    tmp_path: Path, sentence_encoder: Path, store: Path, number: signal.Signals
) -> None:
    forget(store, "samples")
    run = _Run(tmp_path, sentence_encoder)
    _kill_worker_of(run, "samples", number)
    outcomes = run.execute()
    failure = outcomes["samples"].failure
    assert failure is not None
    assert failure.signal == number.name
    assert number.name in failure.message
    assert failure.hint
    assert outcomes["reference"].record is None
    assert "samples" not in _hits(run.plan, run.store)
    assert not _workers()


def test_independent_branches_go_on_and_the_next_run_does_only_the_rest(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    forget(store, "samples", "fuse")
    run = _Run(tmp_path, sentence_encoder)
    _kill_worker_of(run, "samples", signal.SIGKILL)
    outcomes = run.execute()
    assert run.names(NodeFinished) == ["fuse"]
    missing = {name for name, outcome in outcomes.items() if outcome.record is None}
    assert set(run.names(NodeSkipped)) == missing - {"samples"}
    assert {"reference", "validate@cpu-fp32-fuse"} <= missing
    again = _Run(tmp_path, sentence_encoder)
    finished = again.execute()
    assert all(outcome.record is not None for outcome in finished.values())
    # The samples come out as before, so that all that hangs on them is a hit again.
    assert again.names(NodeFinished) == ["samples"]


def test_a_stage_past_its_time_is_stopped(tmp_path: Path, sentence_encoder: Path) -> None:
    run = _Run(tmp_path, sentence_encoder, limits={"time_s": 0.2})
    outcomes = run.execute()
    failure = outcomes["export"].failure
    assert failure is not None
    assert "longer than its limit of 0.2 s" in failure.message
    assert "limits.time_s" in failure.hint
    assert not _workers()


def test_a_stage_past_its_memory_is_stopped(tmp_path: Path, sentence_encoder: Path) -> None:
    run = _Run(tmp_path, sentence_encoder, limits={"memory_mib": 150})
    outcomes = run.execute()
    failure = outcomes["export"].failure
    assert failure is not None
    assert "more than its limit of 150 MiB" in failure.message
    assert "limits.memory_mib" in failure.hint


def test_a_stage_that_was_past_its_memory_between_two_looks_has_failed(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.process.group_resident_mib", lambda _: 0)
    run = _Run(tmp_path, sentence_encoder, limits={"memory_mib": 150})
    outcomes = run.execute()
    failure = outcomes["export"].failure
    assert failure is not None
    assert "more than its limit of 150 MiB" in failure.message
    assert failure.hint.startswith("raise `limits.memory_mib`")


def test_a_stage_with_limits_of_its_own_is_stopped_by_them(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    limits = {"memory_mib": 60_000, "stages": {"export": {"time_s": 0.2}}}
    outcomes = _Run(tmp_path, sentence_encoder, limits=limits).execute()
    failures = {name: each.failure for name, each in outcomes.items() if each.failure}
    assert list(failures) == ["export"]  # all others keep the hour that is the default
    assert "longer than its limit of 0.2 s" in failures["export"].message
    assert failures["export"].hint == "raise `limits.stages.export.time_s`"

    limits = {"time_s": 600, "stages": {"export": {"memory_mib": 60}}}
    outcomes = _Run(tmp_path, sentence_encoder, limits=limits).execute()
    failure = outcomes["export"].failure
    assert failure is not None
    assert "more than its limit of 60 MiB" in failure.message
    assert "limits.stages.export.memory_mib" in failure.hint


def test_a_stage_with_larger_limits_of_its_own_is_not_stopped_by_those_for_all(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    forget(store, "fuse")
    limits = {"time_s": 0.01, "stages": {"fuse": {"time_s": 600}}}
    run = _Run(tmp_path, sentence_encoder, limits=limits)
    run.execute()
    assert run.names(NodeFinished) == ["fuse"]


def test_a_failure_is_tried_again_never_remembered(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    forget(store, "fuse")
    first = _Run(tmp_path, sentence_encoder, limits={"time_s": 0.01})
    first.execute()
    assert first.names(NodeFailed) == ["fuse"]
    second = _Run(tmp_path, sentence_encoder)
    second.execute()
    assert second.names(NodeFinished) == ["fuse"]


def test_a_damaged_result_is_made_anew_and_the_result_is_the_same(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    first = _Run(tmp_path, sentence_encoder, targets=[FP32])
    record = first.execute()["fuse"].record
    assert record is not None
    model = first.store.open_tree(record.tree)
    assert model is not None
    path = model / "model.onnx"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    # A node that must run needs the damaged result: it must not be fed to it.
    forget(store, "quantize_dynamic")
    second = _Run(tmp_path, sentence_encoder, targets=[FP32, INT8])
    after = second.execute()
    assert all(outcome.record is not None for outcome in after.values())
    assert "fuse" in second.names(NodeFinished)
    remade = after["fuse"].record
    assert remade is not None
    assert remade.tree == record.tree


def test_an_interrupt_leaves_no_process_and_a_store_that_goes_on(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    forget(store, "fuse", "validate")
    run = _Run(tmp_path, sentence_encoder)

    def hook(event: Event) -> None:
        if isinstance(event, NodeFinished):
            raise KeyboardInterrupt

    run.hook = hook
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    assert not _workers()
    assert run.store.verify() == ()
    kept = set(run.names(NodeFinished))
    again = _Run(tmp_path, sentence_encoder)
    again.execute()
    assert kept
    assert not kept & set(again.names(NodeFinished))


def test_the_peak_of_a_stage_does_not_count_the_memory_of_whoever_started_it(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    forget(store, "fuse")
    mine = bytearray(os.urandom(1 << 20) * 600)  # touched, so that it is resident
    run = _Run(tmp_path, sentence_encoder)
    record = run.execute()["fuse"].record
    assert record is not None
    assert record.peak_rss_mib < len(mine) / 2**20
