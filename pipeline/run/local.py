"""Executes a plan on this machine.

Nodes run in child processes as soon as their inputs are there; independent branches go on when one
fails. A result is looked up in the store first, by a key that is only known once all inputs are.
While nodes run, the workers that come next are started ahead and import their libraries.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, PipelineError
from pipeline.planning import attempt_key, node_address, node_preimage, node_status
from pipeline.run.children import end_nurseries
from pipeline.run.events import (
    NodeFailed,
    NodeFinished,
    NodeHit,
    NodeProgress,
    NodeSkipped,
    NodeStarted,
    NodeWaiting,
)
from pipeline.run.outcomes import NodeFailure, NodeOutcome
from pipeline.run.process import Ending, WorkerProcess
from pipeline.targets.base import NodeRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.planning import Node, NodeStatus, Plan
    from pipeline.run.events import Listener
    from pipeline.store import StageRecord, Store


@dataclass(slots=True, kw_only=True)
class _Job:
    """A node that is running."""

    status: NodeStatus
    future: Future[StageRecord | NodeFailure]


@dataclass(kw_only=True)
class LocalExecutor:
    """Runs the nodes of a plan that have no result yet.

    Attributes:
        plan: What to do.
        store: Where results are.
        listener: Is told what happens, from several threads.
        jobs: How many stages may run at the same time.
        threads: Threads of a stage.
        on_log: Is told (node, line) for every line of a stage's log, or None.
    """

    plan: Plan
    store: Store
    listener: Listener
    jobs: int
    threads: int
    on_log: Callable[[int, str], None] | None = None
    _trees: dict[int, str] = field(default_factory=dict)
    _outcomes: dict[int, NodeOutcome] = field(default_factory=dict)
    _running: dict[int, _Job] = field(default_factory=dict)
    _workers: list[WorkerProcess] = field(default_factory=list)
    _active: list[WorkerProcess] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_stopping: bool = False

    def execute(self) -> tuple[NodeOutcome, ...]:
        """Bring every node to an end: hit, ran, failed or skipped.

        Raises:
            KeyboardInterrupt: after every child process was ended; what was filed stays filed.
        """
        pool = ThreadPoolExecutor(max_workers=max(1, self.jobs))
        try:
            while len(self._outcomes) < len(self.plan.nodes):
                self._advance(pool)
                if self._running:
                    done, _ = wait(
                        [job.future for job in self._running.values()], return_when=FIRST_COMPLETED
                    )
                    for index in [i for i, job in self._running.items() if job.future in done]:
                        self._collect(self._running.pop(index))
        finally:
            self._stop()
            pool.shutdown(wait=True, cancel_futures=True)
        return tuple(self._outcomes[node.index] for node in self.plan.nodes)

    # --- scheduling -------------------------------------------------------------------------

    def _advance(self, pool: ThreadPoolExecutor) -> None:
        """Settle hits and skipped nodes, and start what can run now."""
        for node in self.plan.nodes:
            if node.index in self._outcomes or node.index in self._running:
                continue
            failed = [p for p in node.parents() if p in self._outcomes and p not in self._trees]
            if failed:
                self._skip(node, failed[0])
            elif all(parent in self._trees for parent in node.parents()):
                self._settle_or_start(node, pool)
        self._prepare_workers()

    def _settle_or_start(self, node: Node, pool: ThreadPoolExecutor) -> None:
        status = node_status(self.plan, node, self.store, self._trees)
        if status.record is not None:
            # A damaged result is put aside by this, and is a miss when it is looked up again.
            if self.store.open_tree(status.record.tree) is not None:
                self._settle_hit(node, status.record)
            return
        if len(self._running) >= self.jobs or self._must_wait(node):
            return
        lost = self._lost_inputs(node)
        if lost:
            # A damaged result was found and taken away: whatever made it must run again first.
            for index in lost:
                self._trees.pop(index, None)
                self._outcomes.pop(index, None)
            return
        self.listener(NodeStarted(node=node.index, reasons=status.reasons))
        worker = self._take_worker(node)
        future = pool.submit(self._run_node, status, worker)
        self._running[node.index] = _Job(status=status, future=future)

    def _must_wait(self, node: Node) -> bool:
        """A stage that measures time runs alone, and after all others that could disturb it."""
        running = [self.plan.nodes[index] for index in self._running]
        if any(other.stage.is_exclusive for other in running):
            return True
        if not node.stage.is_exclusive:
            return False
        return bool(running) or any(
            other.index not in self._outcomes
            and not other.stage.is_exclusive
            and other.index != node.index
            for other in self.plan.nodes
        )

    def _settle_hit(self, node: Node, record: StageRecord) -> None:
        self._trees[node.index] = record.tree
        self._outcomes[node.index] = NodeOutcome(node=node, record=record, has_run=False)
        self.store.remember(node_address(self.plan, node), record.key)
        self.listener(NodeHit(node=node.index))

    def _skip(self, node: Node, because: int) -> None:
        name = self.plan.nodes[because].name
        reasons = (f"`{name}` has no result",)
        self._outcomes[node.index] = NodeOutcome(
            node=node, record=None, has_run=False, reasons=reasons
        )
        self.listener(NodeSkipped(node=node.index, because=because))

    def _lost_inputs(self, node: Node) -> list[int]:
        return [p for p in node.parents() if self.store.open_tree(self._trees[p]) is None]

    def _collect(self, job: _Job) -> None:
        node = job.status.node
        result = job.future.result()
        if isinstance(result, NodeFailure):
            self._outcomes[node.index] = NodeOutcome(
                node=node,
                record=None,
                has_run=True,
                reasons=job.status.reasons,
                failure=result,
            )
            self.listener(NodeFailed(node=node.index, message=result.message))
            return
        self._trees[node.index] = result.tree
        self._outcomes[node.index] = NodeOutcome(
            node=node, record=result, has_run=True, reasons=job.status.reasons
        )
        self.store.remember(node_address(self.plan, node), result.key)
        self.listener(
            NodeFinished(
                node=node.index,
                wall_time_s=result.wall_time_s,
                peak_rss_mib=result.peak_rss_mib,
            )
        )

    # --- workers ----------------------------------------------------------------------------

    def _prepare_workers(self) -> None:
        """Start the next workers ahead, so that their imports overlap with what runs now."""
        running = [self.plan.nodes[index] for index in self._running]
        if not running or any(node.stage.is_exclusive for node in running):
            return
        waiting = [
            node
            for node in self.plan.nodes
            if node.index not in self._outcomes
            and node.index not in self._running
            and node.stage.preload
            and not node.stage.is_exclusive
            # Below a hit that nothing forces to run, there may be nothing to do.
            and any(parent not in self._trees for parent in node.parents())
        ]
        for node in waiting[: max(0, self.jobs - len(self._workers))]:
            self._workers.append(self._new_worker(node))

    def _take_worker(self, node: Node) -> WorkerProcess:
        if node.stage.is_exclusive:
            for worker in self._workers:
                worker.discard()
            self._workers.clear()
        for worker in self._workers:
            if worker.preload == node.stage.preload:
                self._workers.remove(worker)
                return worker
        return self._new_worker(node)

    def _new_worker(self, node: Node) -> WorkerProcess:
        stage = node.stage
        # What is measured must not depend on what ran before it.
        group = "" if stage.is_exclusive else "torch" if "torch" in stage.packages else "graphs"
        return WorkerProcess(stage.preload, self.threads, group)

    def _stop(self) -> None:
        self._is_stopping = True
        with self._lock:
            if (
                self._active
            ):  # interrupted; otherwise a worker's end waits for its nursery's imports
                end_nurseries()
            for worker in self._active:
                worker.kill()
        for worker in self._workers:
            worker.discard()
        self._workers.clear()

    # --- one node, in a thread of the pool --------------------------------------------------

    def _run_node(self, status: NodeStatus, worker: WorkerProcess) -> StageRecord | NodeFailure:
        node = status.node
        key = status.key
        assert key is not None
        try:
            with self.store.lock(key, lambda: self.listener(NodeWaiting(node=node.index))):
                found = self.store.find(key)
                # Another process may have made it while this one waited; it is a hit when it is whole.
                if found is not None and self.store.open_tree(found.tree) is not None:
                    worker.discard()
                    return found
                return self._make(node, key, worker)
        except PipelineError as error:
            worker.discard()
            return NodeFailure(
                message=error.message,
                hint=error.hint,
                where=error.where,
                exit_code=int(error.exit_code),
            )

    def _make(self, node: Node, key: str, worker: WorkerProcess) -> StageRecord | NodeFailure:
        preimage = node_preimage(node, self._digests(node))
        attempt = attempt_key(node, preimage)
        with self.store.workspace() as workspace:
            job = {
                "stage": node.stage.name,
                "config": node.config.model_dump_json(),
                "inputs": self._input_paths(node, workspace.scratch.parent / "inputs"),
                "output": str(workspace.output),
                "scratch": str(workspace.scratch),
                "threads": self.threads,
                "resumable": str(self.store.attempt(attempt)) if attempt else "",
            }
            ending = self._watch(node, worker, job)
            if ending.facts is None:
                return NodeFailure(
                    message=ending.message,
                    hint=ending.hint,
                    where=ending.where,
                    signal=ending.signal,
                    exit_code=ending.exit_code,
                    last_lines=ending.last_lines[-20:],
                )
            self.plan.require_unchanged()
            record = self.store.publish(
                key=key,
                preimage=preimage,
                output=workspace.output,
                facts=ending.facts,
                wall_time_s=ending.wall_time_s,
                peak_rss_mib=ending.peak_rss_mib,
            )
        # What ran out of time goes on here when it is given more.
        if attempt and ending.facts.get("is_complete") is not False:
            self.store.end_attempt(attempt)
        return record

    def _watch(self, node: Node, worker: WorkerProcess, job: Mapping[str, object]) -> Ending:
        stage, all_limits = node.stage.name, self.plan.recipe.limits
        limits = all_limits.of(stage)
        with self._lock:
            if self._is_stopping:
                worker.kill()
            self._active.append(worker)
        on_log = self.on_log
        try:
            return worker.run(
                job,
                time_s=limits.time_s,
                memory_limit_mib=limits.memory_mib,
                limit_keys=(all_limits.key(stage, "time_s"), all_limits.key(stage, "memory_mib")),
                on_progress=lambda done, total, unit: self.listener(
                    NodeProgress(node=node.index, done=done, total=total, unit=unit)
                ),
                on_line=None if on_log is None else lambda line: on_log(node.index, line),
            )
        finally:
            with self._lock:
                self._active.remove(worker)

    def _input_paths(self, node: Node, directory: Path) -> dict[str, str]:
        paths = {}
        for port, ref in node.inputs.items():
            if isinstance(ref, NodeRef):
                tree = self.store.open_tree(self._trees[ref.node])
                if tree is None:
                    raise ArtifactError(
                        f"the result of `{self.plan.nodes[ref.node].name}` is damaged",
                        hint="it was put aside; run again to make it anew",
                    )
                paths[port] = str(tree)
            else:
                paths[port] = str(directory / port)
                (directory / port).mkdir(parents=True)
                self.plan.materialise(ref.group, directory / port)
        return paths

    def _digests(self, node: Node) -> dict[str, JSON]:
        return {
            port: (
                self._trees[ref.node]
                if isinstance(ref, NodeRef)
                else self.plan.group_content(ref.group)
            )
            for port, ref in node.inputs.items()
        }
