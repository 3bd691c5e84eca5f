"""Runs the nodes of a plan in this process, and damages the result of one of them.

A good result is made once and kept in a store, filed under the same key as by any build. A mutant
takes the result of one node, damages a copy, and files it under a key that no build can ask for;
every node behind it then has another input, another key, and is really run. What a mutant made is
in a store of its own, which is deleted with it.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.assemble import Results, assemble_report
from pipeline.errors import PipelineError
from pipeline.hashing import tagged_digest
from pipeline.planning import KEY_TAG, input_digests, node_preimage
from pipeline.run.outcomes import NodeFailure, NodeOutcome
from pipeline.store import Store
from pipeline.targets.base import NodeRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.planning import Node, Plan
    from pipeline.report.schema import Report
    from pipeline.store import StageRecord

THREADS = 2
UNASKED = frozenset({"engine"})
"""Stages behind which nothing is measured on a machine without a GPU; they only cost time."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may ask of its process: `pipeline.stages.base.StageContext`."""

    scratch: Path
    threads: int = THREADS

    @property
    def resumable(self) -> None:
        """Nothing is killed here."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Nobody is watching."""

    def log(self, message: str) -> None:
        """Nobody is reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A well-formed but wrong result in place of the right one.

    Attributes:
        name: Tells it from all others; part of the key.
        node: Name of the node whose result it replaces.
        apply: Is given what the node would have been given, and makes the wrong result.
    """

    name: str
    node: str
    apply: Callable[[Scene], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a damage works on.

    Attributes:
        node: The node.
        inputs: Port -> directory, as the stage gets them.
        good: The directory of the right result.
        facts: What the stage said of it.
        output: An empty directory for the wrong one.
        bench: Where other good results are.
        plan: The plan that the node is of.
        context: For running the stage itself with something else.
    """

    node: Node
    inputs: Mapping[str, Path]
    good: Path
    facts: Mapping[str, Any]
    output: Path
    bench: Bench
    plan: Plan
    context: Context

    def result(self, name: str) -> Path:
        """The directory of the right result of another node."""
        return self.bench.result(self.plan, name)


@dataclass(slots=True)
class _Layers:
    """Several stores that are read as one; the last is written."""

    stores: tuple[Store, ...]

    def find(self, key: str) -> StageRecord | None:
        """The first store's record that has one."""
        return next((found for s in self.stores if (found := s.find(key)) is not None), None)

    def open_tree(self, digest: str) -> Path | None:
        """The tree in whichever store has it."""
        return next((path for s in self.stores if (path := s.open_tree(digest)) is not None), None)


@dataclass(slots=True)
class Bench:
    """Where good results are kept.

    Attributes:
        root: Its directory: the store of good results, recipes, and what mutants make meanwhile.
        runs: How often each stage was really run, for the curious.
        proven: (model, target) of good conversions that passed.
    """

    root: Path
    runs: dict[str, int] = field(default_factory=dict)
    proven: set[tuple[str, str]] = field(default_factory=set)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.recipes.mkdir(parents=True, exist_ok=True)
        # What is filed here is hashed when it is filed; a table hashes nothing twice.
        self.store = Store(self.root / "store", is_trusted=True)

    @property
    def recipes(self) -> Path:
        """Where recipe files are written."""
        return self.root / "recipes"

    def good(self, plan: Plan) -> Report:
        """The report of the right conversion."""
        return self._report(plan, self._execute(plan, self.store, None), (self.store,))

    def mutant(self, plan: Plan, damage: Damage) -> Report:
        """The report of the conversion with one damaged result.

        Raises:
            KeyError: when the plan has no such node.
        """
        target = next((node for node in plan.nodes if node.name == damage.node), None)
        if target is None:
            raise KeyError(damage.node)
        folder = self.root / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            private = Store(folder, is_trusted=True)
            outcomes = self._execute(plan, private, (target.index, damage))
            return self._report(plan, outcomes, (self.store, private))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def result(self, plan: Plan, name: str) -> Path:
        """The directory of the right result of a node, made when it is not there."""
        node = next(node for node in plan.nodes if node.name == name)
        wanted = _ancestors(plan, node.index) | {node.index}
        record = self._execute(plan, self.store, None, only=wanted)[node.index].record
        tree = None if record is None else self.store.open_tree(record.tree)
        assert tree is not None, name
        return tree

    def _execute(
        self,
        plan: Plan,
        private: Store,
        damaged: tuple[int, Damage] | None,
        only: set[int] | None = None,
    ) -> tuple[NodeOutcome, ...]:
        layers = _Layers((self.store, private) if private is not self.store else (private,))
        outcomes: list[NodeOutcome] = []
        trees: dict[int, str] = {}
        spoiled = {damaged[0]} if damaged else set()
        for node in plan.nodes:
            parents = set(node.parents())
            if parents & spoiled:
                spoiled.add(node.index)
            digests = input_digests(plan, node, trees)
            is_unasked = node.stage.name in UNASKED or (
                only is not None and node.index not in only
            )
            if digests is None or is_unasked:
                outcomes.append(NodeOutcome(node=node, record=None, has_run=False))
                continue
            home = private if node.index in spoiled else self.store
            outcome = self._settle(plan, node, home, layers, trees)
            if damaged is not None and damaged[0] == node.index and outcome.record is not None:
                outcome = self._damage(plan, node, damaged[1], outcome.record, private, trees)
            outcomes.append(outcome)
            if outcome.record is not None:
                trees[node.index] = outcome.record.tree
        return tuple(outcomes)

    def _settle(
        self, plan: Plan, node: Node, home: Store, layers: _Layers, trees: Mapping[int, str]
    ) -> NodeOutcome:
        preimage = node_preimage(node, input_digests(plan, node, trees) or {})
        key = tagged_digest(KEY_TAG, preimage)
        record = layers.find(key)
        if record is not None:
            return NodeOutcome(node=node, record=record, has_run=False)
        with home.workspace() as workspace:
            inputs = self._inputs(plan, node, layers, trees, workspace.scratch.parent / "inputs")
            started = time.monotonic()
            self.runs[node.stage.name] = self.runs.get(node.stage.name, 0) + 1
            try:
                with _unchanged_process():
                    facts = node.stage.run(
                        node.config, inputs, workspace.output, Context(workspace.scratch)
                    )
            except PipelineError as error:
                failure = NodeFailure(message=error.message, hint=error.hint, where=error.where)
                return NodeOutcome(node=node, record=None, has_run=True, failure=failure)
            except Exception as error:  # noqa: BLE001 - as the worker tells it
                failure = NodeFailure(message=f"{type(error).__name__}: {error}")
                return NodeOutcome(node=node, record=None, has_run=True, failure=failure)
            record = home.publish(
                key=key,
                preimage=preimage,
                output=workspace.output,
                facts=facts,
                wall_time_s=time.monotonic() - started,
                peak_rss_mib=0.0,
            )
        return NodeOutcome(node=node, record=record, has_run=True)

    def _damage(
        self,
        plan: Plan,
        node: Node,
        damage: Damage,
        good: StageRecord,
        private: Store,
        trees: Mapping[int, str],
    ) -> NodeOutcome:
        preimage = dict(good.preimage) | {"damage": damage.name}
        layers = _Layers((self.store, private))
        tree = layers.open_tree(good.tree)
        assert tree is not None
        with private.workspace() as workspace:
            scene = Scene(
                node=node,
                inputs=self._inputs(
                    plan, node, layers, trees, workspace.scratch.parent / "inputs"
                ),
                good=tree,
                facts=good.facts,
                output=workspace.output,
                bench=self,
                plan=plan,
                context=Context(workspace.scratch),
            )
            with _unchanged_process():
                facts = damage.apply(scene)
            record = private.publish(
                key=tagged_digest(KEY_TAG, preimage),
                preimage=preimage,
                output=workspace.output,
                facts=facts,
                wall_time_s=0.0,
                peak_rss_mib=0.0,
            )
        return NodeOutcome(node=node, record=record, has_run=True)

    @staticmethod
    def _inputs(
        plan: Plan, node: Node, layers: _Layers, trees: Mapping[int, str], folder: Path
    ) -> dict[str, Path]:
        paths = {}
        for port, ref in node.inputs.items():
            if isinstance(ref, NodeRef):
                tree = layers.open_tree(trees[ref.node])
                assert tree is not None, (node.name, port)
                paths[port] = tree
            else:
                paths[port] = folder / port
                paths[port].mkdir(parents=True)
                plan.materialise(ref.group, paths[port])
        return paths

    @staticmethod
    def _report(
        plan: Plan, outcomes: tuple[NodeOutcome, ...], stores: tuple[Store, ...]
    ) -> Report:
        results = Results(plan=plan, outcomes=outcomes, store=_Layers(stores))  # type: ignore[arg-type]
        return assemble_report(results, version="0", created_at="", files=())


def _ancestors(plan: Plan, index: int) -> set[int]:
    found: set[int] = set()
    queue = [index]
    while queue:
        for parent in plan.nodes[queue.pop()].parents():
            if parent not in found:
                found.add(parent)
                queue.append(parent)
    return found


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """What stages change in their own process, which is not theirs alone here."""
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        gc.enable()
