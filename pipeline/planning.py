"""Recipe -> Plan: the nodes, their keys, and the reason why each must run.

Pure: nothing is run, nothing heavy is imported. A node's key needs the digests of its inputs, so keys
of nodes below one that must run are not known before it has run: when it yields the same bytes as
before, everything below it is a hit again ("early cut-off").
"""

from __future__ import annotations

import contextlib
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pipeline.environment import (
    MACHINE_FACTS,
    code_digest,
    cores,
    platform_tag,
    python_tag,
    require_packages,
)
from pipeline.errors import RecipeError
from pipeline.hashing import canonical_json, tagged_digest
from pipeline.source import TOKENIZER_VOCABULARIES
from pipeline.stages.benchmark import BENCHMARK, BenchmarkConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from pipeline.stages.validate import VALIDATE, ValidateConfig
from pipeline.targets.base import NodeRef, Ref, SourceRef
from pipeline.tasks import check_task, find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.hashing import JSON
    from pipeline.recipe.types import Recipe
    from pipeline.source import Source
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.store import StageRecord
    from pipeline.targets.base import ModelLink, TargetChain
    from pipeline.tasks import Task

KEY_TAG = "convert/stage-key/1"
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
    """

    index: int
    name: str
    stage: AnyStage
    config: StageConfig
    inputs: Mapping[str, Ref]
    component: str = ""

    def parents(self) -> tuple[int, ...]:
        """Indices of the nodes it reads, in port order."""
        return tuple(ref.node for ref in self.inputs.values() if isinstance(ref, NodeRef))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """What a target needs of the plan.

    Attributes:
        chain: The target's own chain, as its runtime lays it out.
        validations: Component -> (model link, node that compares it), in the order of the chain.
        benchmark: Component -> node that times it; empty when the target cannot run here.
    """

    name: str
    chain: TargetChain
    validations: Mapping[str, tuple[tuple[ModelLink, NodeRef], ...]]
    benchmarks: Mapping[str, NodeRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All the work that a recipe stands for, in an order in which it can be done."""

    recipe: Recipe
    source: Source
    task: Task
    nodes: tuple[Node, ...]
    targets: tuple[TargetPlan, ...]
    samples: NodeRef

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


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A node that has no name yet."""

    stage: AnyStage
    config: StageConfig
    inputs: Mapping[str, Ref]
    component: str
    labels: list[str]


class _Builder:
    """Collects nodes; equal ones are kept once. Implements `pipeline.targets.base.ChainBuilder`."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self._recipe = recipe
        self._task = task
        self.drafts: list[_Draft] = []
        self._known: dict[str, int] = {}
        self.prefix = ""

    @property
    def components(self) -> tuple[str, ...]:
        return self._task.components

    @property
    def profile(self) -> Mapping[str, tuple[int, int, int]]:
        shapes = self._recipe.shapes
        return {
            axis: (extent.min, extent.opt, extent.max)
            for axis, extent in (("batch", shapes.batch), ("sequence", shapes.sequence))
        }

    def exported(self, component: str) -> NodeRef:
        config = ExportConfig(
            **self._recipe.export.model_dump(), task=self._task.name, component=component
        )
        return self.add(
            EXPORT, config, {"checkpoint": SourceRef("checkpoint")}, component=component
        )

    def add(
        self,
        stage: AnyStage,
        config: StageConfig,
        inputs: Mapping[str, Ref],
        *,
        component: str = "",
        label: str = "",
    ) -> NodeRef:
        wired = {port: _ref_json(ref) for port, ref in inputs.items()}
        identity = canonical_json([stage.name, config.model_dump(mode="json"), wired, component])
        full_label = "-".join(filter(None, (self.prefix, label)))
        if identity not in self._known:
            self._known[identity] = len(self.drafts)
            self.drafts.append(
                _Draft(stage=stage, config=config, inputs=inputs, component=component, labels=[])
            )
        index = self._known[identity]
        if full_label and full_label not in self.drafts[index].labels:
            self.drafts[index].labels.append(full_label)
        return NodeRef(index)


def _ref_json(ref: Ref) -> JSON:
    return ["node", ref.node] if isinstance(ref, NodeRef) else ["source", ref.group]


def _key_path(*key_path: str | int) -> str:
    """`targets[1].name`: where a value stands when the recipe has no file."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key_path).lstrip(".")


@contextlib.contextmanager
def _about(where: Where, *key_path: str | int) -> Iterator[None]:
    """Errors that do not say where in the recipe they belong get their place here."""
    try:
        yield
    except RecipeError as error:
        error.where = error.where or where(*key_path)
        raise


def build_plan(recipe: Recipe, source: Source, where: Where = _key_path) -> Plan:
    """Lay out all the work of a recipe.

    Args:
        recipe: What is asked for.
        source: Its checkpoint.
        where: Key path -> position for messages, such as `LoadedRecipe.where`.

    Raises:
        RecipeError: the task does not fit the checkpoint, shapes go past its positions, a precision
            is impossible on a target.
        EnvironmentMissing: a package that a stage needs is not installed.
    """
    with _about(where, "model", "task"):
        task = find_task(recipe.model.task)
        check_task(source.config, task)
    with _about(where, "model", "source"):
        _check_tokenizer(source, task)
    _check_shapes(recipe, source, where)
    builder = _Builder(recipe, task)
    samples = builder.add(
        SAMPLES,
        SamplesConfig(
            source=recipe.data.evaluation.source,
            samples=recipe.data.evaluation.samples,
            seed=recipe.data.evaluation.seed,
            max_length=recipe.shapes.sequence.max,
        ),
        {"tokenizer": SourceRef("tokenizer")},
    )
    references = {
        component: builder.add(
            REFERENCE,
            ReferenceConfig(task=task.name, component=component),
            {"checkpoint": SourceRef("checkpoint"), "samples": samples},
            component=component,
        )
        for component in task.components
    }
    targets = []
    for place, target in enumerate(recipe.targets):
        builder.prefix = target.name
        with _about(where, "targets", place):
            chain = target.chain(builder)
        targets.append(
            _plan_target(target.name, chain, builder, recipe, task, samples, references)
        )
    _check_coverage(recipe, builder.drafts, where)
    nodes = _named(builder.drafts)
    for node in nodes:
        require_packages(node.stage)
    return Plan(
        recipe=recipe,
        source=source,
        task=task,
        nodes=nodes,
        targets=tuple(targets),
        samples=samples,
    )


def _plan_target(
    name: str,
    chain: TargetChain,
    builder: _Builder,
    recipe: Recipe,
    task: Task,
    samples: NodeRef,
    references: Mapping[str, NodeRef],
) -> TargetPlan:
    """Add what measures a target: a comparison of every model in its chain, and a benchmark."""
    validations = {}
    benchmarks = {}
    for component, links in chain.models.items():
        found = []
        for link in links:
            config = ValidateConfig(
                optimizations=link.optimizations, batch_size=recipe.shapes.batch.opt
            )
            inputs: dict[str, Ref] = {
                "model": link.node,
                "samples": samples,
                "reference": references[component],
            }
            label = builder.drafts[link.node.node].stage.name
            found.append(
                (link, builder.add(VALIDATE, config, inputs, component=component, label=label))
            )
        validations[component] = tuple(found)
        options = recipe.benchmark
        if chain.runtime is not None and options is not None:
            benchmark = BenchmarkConfig(
                task=task.name,
                component=component,
                runtime=chain.runtime,
                shapes=_benchmark_shapes(recipe),
                launches=options.launches,
                threads=options.threads or cores(),
                margin=recipe.gates.speed.margin if recipe.gates.speed else 0.05,
            )
            benchmarks[component] = builder.add(
                BENCHMARK,
                benchmark,
                {
                    "checkpoint": SourceRef("checkpoint"),
                    "model": links[-1].node,
                    "samples": samples,
                },
                component=component,
            )
    return TargetPlan(name=name, chain=chain, validations=validations, benchmarks=benchmarks)


def _named(drafts: list[_Draft]) -> tuple[Node, ...]:
    """Give every node its address: the stage's name, and who asks for it where that is not enough."""
    nodes: list[Node] = []
    taken: set[str] = set()
    for index, draft in enumerate(drafts):
        base = draft.stage.name
        if draft.component not in {"", "model"}:
            base = f"{base}.{draft.component}"
        rivals = [d for d in drafts if d.stage is draft.stage and d.component == draft.component]
        name = base
        if len(rivals) > 1 and draft.labels:
            name = f"{base}@{draft.labels[0]}"
        number = 2
        while name in taken:
            name, number = f"{base}@{draft.labels[0] if draft.labels else ''}-{number}", number + 1
        taken.add(name)
        nodes.append(
            Node(
                index=index,
                name=name,
                stage=draft.stage,
                config=draft.config,
                inputs=draft.inputs,
                component=draft.component,
            )
        )
    return tuple(nodes)


def _check_tokenizer(source: Source, task: Task) -> None:
    takes_text = any(spec.name == "input_ids" for spec in task.inputs)
    if takes_text and not any(name in source.files for name in TOKENIZER_VOCABULARIES):
        raise RecipeError(
            "the checkpoint has no tokenizer, and without it there are no samples to compare on",
            hint=f"one of these must be in {source.root}: {', '.join(TOKENIZER_VOCABULARIES)}",
        )


def _check_shapes(recipe: Recipe, source: Source, where: Where) -> None:
    # TensorRT only warns of this and builds an engine that reads past the position embeddings.
    limit = source.max_positions
    longest = recipe.shapes.sequence.max
    if limit is not None and longest > limit:
        raise RecipeError(
            f"sequences of {longest} tokens are asked for, and the checkpoint has {limit} positions",
            where=where("shapes", "sequence", "max"),
            hint=f"set it to {limit} or less",
        )
    for place, (batch, sequence) in enumerate(_benchmark_shapes(recipe)):
        for axis, value in (("batch", batch), ("sequence", sequence)):
            extent = getattr(recipe.shapes, axis)
            if not extent.min <= value <= extent.max:
                raise RecipeError(
                    f"{axis} {value} is measured, but `shapes.{axis}` goes from {extent.min} to "
                    f"{extent.max}",
                    where=where("benchmark", "shapes", place),
                    hint="measure shapes that the targets are made for",
                )


def _check_coverage(recipe: Recipe, drafts: list[_Draft], where: Where) -> None:
    known = sorted({name for draft in drafts for name in draft.stage.coverage})
    for name in recipe.gates.coverage:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        raise RecipeError(
            f"no stage of this recipe reports `{name}`"
            + (f" - did you mean `{near[0]}`?" if near else f", only: {', '.join(known)}"),
            where=where("gates", "coverage", name),
        )


def _benchmark_shapes(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    if recipe.benchmark is None:
        return ()
    batch, sequence = recipe.shapes.batch, recipe.shapes.sequence
    usual = ((batch.min, sequence.opt), (batch.opt, sequence.opt))
    return recipe.benchmark.shapes or tuple(dict.fromkeys(usual))


# --- keys -----------------------------------------------------------------------------------


def node_preimage(node: Node, inputs: Mapping[str, str]) -> dict[str, JSON]:
    """Everything that can change what a node makes.

    Args:
        node: The node.
        inputs: Port -> digest of the content behind it.
    """
    stage = node.stage
    packages = {name: fact.to_json() for name, fact in require_packages(stage).items()}
    return {
        "stage": stage.name,
        "stage_version": stage.version,
        "code": code_digest(stage.run.__module__),
        "component": node.component,
        "config": node.config.model_dump(mode="json"),
        "inputs": dict(inputs),
        "packages": packages,
        "python": python_tag(),
        "platform": platform_tag(),
        "machine": {name: MACHINE_FACTS[name]() for name in stage.machine},
    }


def input_digests(node: Node, source: Source, trees: Mapping[int, str]) -> dict[str, str] | None:
    """Port -> content digest; None while one of them is not known (`trees` lacks a parent)."""
    digests = {}
    for port, ref in node.inputs.items():
        if isinstance(ref, SourceRef):
            digests[port] = source.group_digest(ref.group)
        elif ref.node in trees:
            digests[port] = trees[ref.node]
        else:
            return None
    return digests


def node_address(plan: Plan, node: Node) -> str:
    """The name under which the store remembers a node's last key, for explanations only."""
    return tagged_digest("convert/address/1", [plan.recipe.name, node.name])


def explain(preimage: Mapping[str, JSON], last: StageRecord | None) -> tuple[str, ...]:
    """Why there is no result for this preimage, compared with the node's last one."""
    if last is None:
        return ("it has never run under this name",)
    changes = tuple(_differences(last.preimage, preimage, ""))
    return changes or ("its result is no longer in the store",)


def _differences(old: Mapping[str, JSON], new: Mapping[str, JSON], path: str) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        here = f"{path}.{name}" if path else name
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, here)
        elif path == "inputs":
            yield f"input `{name}` has other content"
        elif name == "code":
            yield "the code of the stage changed"
        else:
            yield f"{here}: {_short(before)} -> {_short(after)}"


def _short(value: JSON) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def node_status(plan: Plan, node: Node, records: Records, trees: Mapping[int, str]) -> NodeStatus:
    """Whether a node's result is there, given the output digests of the nodes before it."""
    digests = input_digests(node, plan.source, trees)
    if digests is None:
        missing = [
            f"input `{port}` comes from `{plan.nodes[ref.node].name}`, which must run"
            for port, ref in node.inputs.items()
            if isinstance(ref, NodeRef) and ref.node not in trees
        ]
        return NodeStatus(node=node, key=None, record=None, reasons=tuple(missing))
    preimage = node_preimage(node, digests)
    key = tagged_digest(KEY_TAG, preimage)
    record = records.find(key)
    if record is not None:
        return NodeStatus(node=node, key=key, record=record)
    reasons = explain(preimage, records.remembered(node_address(plan, node)))
    return NodeStatus(node=node, key=key, record=None, reasons=reasons)


def plan_status(plan: Plan, records: Records) -> tuple[NodeStatus, ...]:
    """The status of every node as far as it can be known without running anything."""
    trees: dict[int, str] = {}
    statuses = []
    for node in plan.nodes:
        status = node_status(plan, node, records, trees)
        if status.record is not None:
            trees[node.index] = status.record.tree
        statuses.append(status)
    return tuple(statuses)
