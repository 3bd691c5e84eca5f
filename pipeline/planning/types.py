"""What a plan is made of: nodes, targets, and their status."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.source.files import link_files, require_untouched
from pipeline.stages.engine_work import TIMING_CACHE_FILE
from pipeline.targets.base import ModelLink, NodeRef, Ref
from pipeline.targets.tensorrt import TIMING_CACHE_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pipeline.candidates import Candidate
    from pipeline.data_source import DataSource
    from pipeline.hashing import JSON
    from pipeline.recipe.types import Recipe
    from pipeline.source import Source
    from pipeline.source.files import SourceFile
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.store import StageRecord
    from pipeline.targets.base import TargetChain
    from pipeline.tasks import Task


KEY_TAG = "convert/stage-key/1"


ATTEMPT_TAG = "convert/attempt-key/1"


DATA_GROUP = "data:"


CANDIDATE_GROUP = "candidate:"
"""And then the target's name and `model` or `companions`, as in `candidate:model:NAME`."""


Where: TypeAlias = "Callable[..., str]"
"""Key path, key by key -> what a message says of its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One piece of work: a stage, its config and where its inputs come from.

    Attributes:
        index: Its place in `Plan.nodes`; every input stands before it.
        name: Its address for people: `export`, or `engine@rtx-fp16-sm89` where several nodes share
            the stage.
        component: The model component it works on; empty when it serves all.
        is_diagnosis: It only explains a failure; such nodes stand behind all others.
    """

    index: int
    name: str
    stage: AnyStage
    config: StageConfig
    inputs: Mapping[str, Ref]
    component: str = ""
    is_diagnosis: bool = False

    def parents(self) -> tuple[int, ...]:
        """Indices of the nodes it reads, in port order."""
        return tuple(ref.node for ref in self.inputs.values() if isinstance(ref, NodeRef))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCheck:
    """One check of one graph of a target.

    Attributes:
        check: The check's name.
        component: The model component.
        of: The node whose graph is looked at.
        node: The node that looks.
    """

    check: str
    component: str
    of: NodeRef
    node: NodeRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A graph of a chain that is not run, because `gates.stages` has null for its stage.

    Attributes:
        component: The model component.
        link: The graph.
        stage: The stage that makes it.
        checks: Names of the checks that are not done of it either.
    """

    component: str
    link: ModelLink
    stage: str
    checks: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why, and what else, in one sentence."""
        also = f", and with it {' and '.join(f'`{name}`' for name in self.checks)}"
        return (
            f"`gates.stages.{self.stage}: null` leaves its comparison with the checkpoint out"
            + (also if self.checks else "")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """What a target needs of the plan.

    Attributes:
        chain: The target's own chain, as its runtime lays it out.
        validations: Component -> (model link, node that compares it), in the order of the chain.
        benchmark: Component -> node that times it; empty when the target cannot run here.
        checks: What else is looked at.
        left_out: Graphs that are not run, as the recipe says.
        left_out_checks: Names of checks that are not done, as the recipe says.
    """

    name: str
    chain: TargetChain
    validations: Mapping[str, tuple[tuple[ModelLink, NodeRef], ...]]
    benchmarks: Mapping[str, NodeRef]
    checks: tuple[TargetCheck, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    left_out_checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchRunPlan:
    """The checkpoint in torch on a GPU, in one way.

    Attributes:
        variant: Its precision, and whether it is compiled.
        component: The model component.
        validation: The node that compares it with the reference.
        benchmark: The node that times it.
    """

    variant: str
    component: str
    validation: NodeRef
    benchmark: NodeRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All the work that a recipe stands for, in an order in which it can be done.

    Attributes:
        data: Use (`evaluation`, `calibration`) -> the files its samples come from.
        samples: The node that prepares the evaluation samples.
        noise_floors: Component -> the node that measures the checkpoint's own noise.
        torch_runs: What is compared and judged by nothing.
        candidates: Target -> the model that it checks, of targets that check one.
        timing_caches: Target -> the timings that its engine starts from, of targets that have them.
    """

    recipe: Recipe
    source: Source
    data: Mapping[str, DataSource]
    task: Task
    nodes: tuple[Node, ...]
    targets: tuple[TargetPlan, ...]
    samples: NodeRef
    noise_floors: Mapping[str, NodeRef]
    torch_runs: tuple[TorchRunPlan, ...] = ()
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    timing_caches: Mapping[str, SourceFile] = field(default_factory=dict)

    def group_content(self, group: str) -> JSON:
        """What is behind a `SourceRef`, for keys: the digest of data, of a checkpoint each file's."""
        if group.startswith(CANDIDATE_GROUP):
            candidate, kind = self._candidate(group)
            return {name: file.sha256 for name, file in candidate.group(kind).items()}
        if group.startswith(TIMING_CACHE_GROUP):
            return {name: file.sha256 for name, file in self._timing_cache(group).items()}
        use = data_use(group)
        return self.data[use].digest() if use else dict(self.source.group_files(group))

    def materialise(self, group: str, directory: Path) -> None:
        """Make a directory show the files behind a `SourceRef`, and nothing else."""
        use = data_use(group)
        if group.startswith(CANDIDATE_GROUP):
            candidate, kind = self._candidate(group)
            candidate.materialise(kind, directory)
        elif group.startswith(TIMING_CACHE_GROUP):
            link_files(self._timing_cache(group), directory)
        elif use:
            self.data[use].materialise(directory)
        else:
            self.source.materialise(group, directory)

    def _candidate(self, group: str) -> tuple[Candidate, str]:
        kind, _, target = group.removeprefix(CANDIDATE_GROUP).partition(":")
        return self.candidates[target], kind

    def _timing_cache(self, group: str) -> dict[str, SourceFile]:
        target = group.removeprefix(TIMING_CACHE_GROUP)
        return {TIMING_CACHE_FILE: self.timing_caches[target]}

    def require_unchanged(self) -> None:
        """Check that nobody touched the files that were read since their digests were taken.

        Raises:
            ArtifactError: when somebody did.
        """
        self.source.require_unchanged()
        for data in self.data.values():
            data.require_unchanged()
        for candidate in self.candidates.values():
            candidate.require_unchanged()
        for target, file in self.timing_caches.items():
            require_untouched(
                {file.path.name: file}, root=file.path.parent, what=target, doing="used"
            )

    def children(self, index: int) -> Iterator[Node]:
        """The nodes that read this one directly."""
        return (node for node in self.nodes if index in node.parents())


class Records(Protocol):
    """What the plan needs of the store."""

    def find(self, key: str) -> StageRecord | None:
        """The result filed under a key."""

    def remembered(self, address: str) -> StageRecord | None:
        """The last result that the node of this address had, whatever its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Whether a node's result is there, and if not, why.

    Attributes:
        key: None while an input has to be made first.
        record: The result; None when the node must run.
        reasons: Why it must run; empty for a hit.
    """

    node: Node
    key: str | None
    record: StageRecord | None
    reasons: tuple[str, ...] = ()


def plain_key_path(*key_path: str | int) -> str:
    """`targets[1].name`: where a value stands when the recipe has no file."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key_path).lstrip(".")


@contextlib.contextmanager
def about(where: Where, *key_path: str | int) -> Iterator[None]:
    """Errors that do not say where in the recipe they belong get their place here."""
    try:
        yield
    except (RecipeError, EnvironmentMissing) as error:
        below = getattr(error, "key_path", ())  # of a target's own errors
        error.where = error.where or where(*key_path, *below)
        raise


def data_use(group: str) -> str:
    """The use that a group of data files is for; empty for groups of the checkpoint's files."""
    return group.removeprefix(DATA_GROUP) if group.startswith(DATA_GROUP) else ""
