"""Recipe -> Plan: the nodes, their keys, and the reason why each must run.

Pure: nothing is run, nothing heavy is imported. A node's key needs the digests of its inputs, so keys
of nodes below one that must run are not known before it has run: when it yields the same bytes as
before, everything below it is a hit again ("early cut-off").
"""

from __future__ import annotations

import contextlib
import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from pipeline.checks.base import Link, Subject
from pipeline.checks.catalogue import CHECKS
from pipeline.data.fields import pick_fields
from pipeline.environment import (
    code_digest,
    cores,
    find_package,
    machine_facts,
    platform_tag,
    python_tag,
    require_packages,
)
from pipeline.errors import RecipeError
from pipeline.hashing import canonical_json, tagged_digest
from pipeline.parity.quality.names import metric_names
from pipeline.source import PROCESSOR_FILES, TOKENIZER_VOCABULARIES
from pipeline.source.decoder_start import decoder_start
from pipeline.source.files import link_files, require_untouched
from pipeline.stages.benchmark import (
    BENCHMARK,
    BENCHMARK_ENGINE,
    BENCHMARK_PROVIDER,
    BenchmarkConfig,
)
from pipeline.stages.decoder_samples import DECODER_SAMPLES, DecoderSamplesConfig
from pipeline.stages.engine_work import TIMING_CACHE_FILE
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.noise_floor import NOISE_FLOOR, NoiseFloorConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from pipeline.stages.validate import VALIDATE, ValidateConfig
from pipeline.stages.validate_engine import VALIDATE_ENGINE, ValidateEngineConfig
from pipeline.stages.validate_provider import VALIDATE_PROVIDER, ValidateProviderConfig
from pipeline.targets.base import ModelLink, NodeRef, Ref, SourceRef
from pipeline.targets.tensorrt import TIMING_CACHE_GROUP
from pipeline.tasks import BATCH_AXIS, DECODER, check_task, find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.candidates import Candidate
    from pipeline.checks.limits import CheckLimits
    from pipeline.data_source import DataSource
    from pipeline.hashing import JSON
    from pipeline.recipe.types import DataSpec, QualityGates, Recipe
    from pipeline.source import Source
    from pipeline.source.files import SourceFile
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.store import StageRecord
    from pipeline.targets.base import DeviceRun, TargetChain
    from pipeline.targets.shape_ranges import ShapeRange
    from pipeline.tasks import Modality, Task

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
class TargetPlan:
    """What a target needs of the plan.

    Attributes:
        chain: The target's own chain, as its runtime lays it out.
        validations: Component -> (model link, node that compares it), in the order of the chain.
        benchmark: Component -> node that times it; empty when the target cannot run here.
        checks: What else is looked at.
    """

    name: str
    chain: TargetChain
    validations: Mapping[str, tuple[tuple[ModelLink, NodeRef], ...]]
    benchmarks: Mapping[str, NodeRef]
    checks: tuple[TargetCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All the work that a recipe stands for, in an order in which it can be done.

    Attributes:
        data: Use (`evaluation`, `calibration`) -> the files its samples come from.
        samples: The node that prepares the evaluation samples.
        noise_floors: Component -> the node that measures the checkpoint's own noise.
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
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    timing_caches: Mapping[str, SourceFile] = field(default_factory=dict)

    def group_content(self, group: str) -> JSON:
        """What is behind a `SourceRef`, for keys: the digest of data, of a checkpoint each file's."""
        if group.startswith(CANDIDATE_GROUP):
            candidate, kind = self._candidate(group)
            return {name: file.sha256 for name, file in candidate.group(kind).items()}
        if group.startswith(TIMING_CACHE_GROUP):
            return {name: file.sha256 for name, file in self._timing_cache(group).items()}
        use = _data_use(group)
        return self.data[use].digest() if use else dict(self.source.group_files(group))

    def materialise(self, group: str, directory: Path) -> None:
        """Make a directory show the files behind a `SourceRef`, and nothing else."""
        use = _data_use(group)
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

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        source: Source,
        data: Mapping[str, DataSource],
        candidates: Mapping[str, Candidate],
    ) -> None:
        self._recipe = recipe
        self._task = task
        self._source = source
        self._data = data
        self._candidates = candidates
        self.drafts: list[_Draft] = []
        self._known: dict[str, int] = {}
        self.prefix = ""

    @property
    def components(self) -> tuple[str, ...]:
        return self._task.components

    @property
    def profile(self) -> Mapping[str, tuple[int, int, int]]:
        return {
            axis: (extent.min, extent.opt, extent.max)
            for axis, extent in _extents(self._recipe, self._task).items()
        }

    @property
    def task(self) -> Task:
        return self._task

    @property
    def source(self) -> Source:
        return self._source

    def candidate(self, target: str) -> Candidate:
        return self._candidates[target]

    def evaluation_samples(self) -> NodeRef:
        """The node that prepares the samples everything is compared on."""
        return self._samples("evaluation", self._recipe.data.evaluation, {})

    def probes(self) -> NodeRef:
        """The node that makes the probes."""
        sequence = self._recipe.shapes.sequence
        config = ProbesConfig(
            task=self._task.name, lengths=(sequence.min, sequence.max) if sequence else None
        )
        ports: dict[str, Ref] = {
            "samples": self.evaluation_samples(),
            "tokenizer": SourceRef("tokenizer"),
        }
        return self.add(PROBES, config, ports)

    def fed(self, component: str, samples: NodeRef, *, has_pasts: bool = False) -> NodeRef:
        """What a component is run on: the samples, or of a decoder behind an encoder its own inputs.

        Args:
            component: The component.
            samples: Samples or probes of the task.
            has_pasts: Some tokens are in the decoder's cache already.
        """
        if component != DECODER or not self._task.parts:
            return samples
        return self.add(
            DECODER_SAMPLES,
            DecoderSamplesConfig(task=self._task.name, has_pasts=has_pasts),
            {"checkpoint": SourceRef("checkpoint"), "samples": samples},
            component=component,
            fixed_label="probes" if has_pasts else "",
        )

    @property
    def task_name(self) -> str:
        return self._task.name

    def calibration_samples(
        self, purpose: str = "static quantisation needs samples to take its ranges from"
    ) -> NodeRef:
        spec = self._recipe.data.calibration
        if self._task.parts:
            raise RecipeError(
                f"{purpose}, and task `{self._task.name}` has none: of its decoder they would have to "
                "hold keys and values of the source too",
                hint="take `mode: dynamic` or `mode: weight_only`, which need no samples",
            )
        if spec is None:
            raise RecipeError(
                f"{purpose}, and the recipe has no `data.calibration`",
                hint="add `calibration: {source: ..., samples: 256}` beside `evaluation` in `data`",
            )
        return self._samples("calibration", spec, {"evaluation": self.evaluation_samples()})

    def _samples(
        self,
        use: Literal["evaluation", "calibration"],
        spec: DataSpec,
        inputs: Mapping[str, Ref],
    ) -> NodeRef:
        shapes, data = self._recipe.shapes, self._data[use]
        config = SamplesConfig(
            **spec.model_dump(),
            kind=data.kind,
            task=self._task.name,
            use=use,
            overlap=self._recipe.data.overlap,
            max_length=shapes.sequence.max if shapes.sequence else None,
            num_choices=shapes.num_choices.max if shapes.num_choices else None,
            start=decoder_start(self._source) if self._task.parts else None,
        )
        ports: dict[str, Ref] = {"tokenizer": SourceRef("tokenizer"), **inputs}
        if data.files:
            ports["data"] = SourceRef(f"{DATA_GROUP}{use}")
        # An address of its own for each use: `samples` and `samples@calibration`.
        return self.add(SAMPLES, config, ports, fixed_label="" if use == "evaluation" else use)

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
        fixed_label: str | None = None,
    ) -> NodeRef:
        wired = {port: _ref_json(ref) for port, ref in inputs.items()}
        identity = canonical_json([stage.name, config.model_dump(mode="json"), wired, component])
        full_label = "-".join(filter(None, (self.prefix, label)))
        if fixed_label is not None:  # it is the same for whichever target asks first
            full_label = fixed_label
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
        below = getattr(error, "key_path", ())  # of a target's own errors
        error.where = error.where or where(*key_path, *below)
        raise


def build_plan(
    recipe: Recipe,
    source: Source,
    data: Mapping[str, DataSource],
    where: Where = _key_path,
    *,
    candidates: Mapping[str, Candidate] | None = None,
    timing_caches: Mapping[str, SourceFile] | None = None,
    diagnosed: Collection[str] = (),
) -> Plan:
    """Lay out all the work of a recipe.

    Args:
        recipe: What is asked for.
        source: Its checkpoint.
        data: Use -> where its samples come from; one for each in the recipe's `data`.
        where: Key path -> position for messages, such as `LoadedRecipe.where`.
        candidates: Target -> the model that it checks; one for each target that checks one.
        timing_caches: Target -> the timings that its engine starts from.
        diagnosed: Names of targets that failed: what explains it is added, behind all other nodes.

    Raises:
        RecipeError: the task does not fit the checkpoint, shapes are not those of the task or go
            past its positions, a precision is impossible on a target, static quantisation without
            calibration data.
        EnvironmentMissing: a package that a stage needs is not installed.
    """
    with _about(where, "model", "task"):
        task = find_task(recipe.model.task)
        check_task(source.config, task)
    with _about(where, "model", "source"):
        _check_preprocessor(source, task)
    _check_shapes(recipe, task, source, where)
    _check_quality(recipe, task, where)
    for use, spec in recipe.data.specs().items():
        with _about(where, "data", use):
            pick_fields(task, spec)
    builder = _Builder(recipe, task, source, data, candidates or {})
    with _about(where, "model", "source"):
        evaluation = builder.evaluation_samples()
    all_probes = builder.probes()
    samples = {name: builder.fed(name, evaluation) for name in task.components}
    probes = {name: builder.fed(name, all_probes, has_pasts=True) for name in task.components}
    ports: dict[str, dict[str, Ref]] = {
        name: {
            "checkpoint": SourceRef("checkpoint"),
            "samples": samples[name],
            "probes": probes[name],
        }
        for name in task.components
    }
    references = {
        component: builder.add(
            REFERENCE,
            ReferenceConfig(task=task.name, component=component),
            ports[component],
            component=component,
        )
        for component in task.components
    }
    noise_floors = {
        component: builder.add(
            NOISE_FLOOR,
            NoiseFloorConfig(task=task.name, component=component),
            {**ports[component], "reference": references[component]},
            component=component,
        )
        for component in task.components
    }
    measures = _Measures(samples=samples, probes=probes, references=references)
    targets = []
    for place, target in enumerate(recipe.targets):
        builder.prefix = target.name
        with _about(where, "targets", place):
            _check_runtime(target.runtime, task)
            chain = target.chain(builder)
        _check_measured(recipe, task, target.name, chain, where)
        targets.append(_plan_target(target.name, chain, builder, recipe, task, measures))
    work = len(builder.drafts)
    # Behind all others, so that those keep their places: they are there already.
    explained = replace(measures, is_diagnosing=True)
    targets = [
        _with_diagnosis(target, builder, recipe, task, explained)
        if target.name in diagnosed
        else target
        for target in targets
    ]
    _check_coverage(recipe, targets, builder.drafts, where)
    _check_limits(recipe, where)
    nodes = _named(builder.drafts, work)
    for node in nodes:
        require_packages(node.stage)
    return Plan(
        recipe=recipe,
        source=source,
        data=data,
        task=task,
        nodes=nodes,
        targets=tuple(targets),
        samples=evaluation,
        noise_floors=noise_floors,
        candidates=candidates or {},
        timing_caches=timing_caches or {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measures:
    """What every target is measured with, by component."""

    samples: Mapping[str, NodeRef]
    probes: Mapping[str, NodeRef]
    references: Mapping[str, NodeRef]
    is_diagnosing: bool = False


def _with_diagnosis(
    target: TargetPlan, builder: _Builder, recipe: Recipe, task: Task, measures: _Measures
) -> TargetPlan:
    """The target with the checks that explain its failure."""
    builder.prefix = target.name
    limits = recipe.gates.of(target.name).checks
    checks = [
        check
        for component in target.chain.models
        for check in _plan_checks(component, target.chain, builder, task, limits, measures)
    ]
    return replace(target, checks=tuple(checks))


def _plan_target(
    name: str,
    chain: TargetChain,
    builder: _Builder,
    recipe: Recipe,
    task: Task,
    measures: _Measures,
) -> TargetPlan:
    """Add what measures a target: a comparison of every model in its chain, checks, and a benchmark."""
    gates = recipe.gates.of(name)
    validations = {}
    benchmarks = {}
    checks: list[TargetCheck] = []
    for component, links in chain.models.items():
        found = []
        for link in links:
            config = ValidateConfig(
                task=task.name,
                optimizations=link.optimizations,
                batch_size=recipe.shapes.batch.opt,
                outputs=link.outputs,
            )
            inputs: dict[str, Ref] = {
                "model": link.node,
                "samples": measures.samples[component],
                "probes": measures.probes[component],
                "reference": measures.references[component],
            }
            label = builder.drafts[link.node.node].stage.name
            found.append(
                (link, builder.add(VALIDATE, config, inputs, component=component, label=label))
            )
        if device := chain.device_runs.get(component):
            found.append(_on_device(component, device, builder, recipe, measures))
        validations[component] = tuple(found)
        checks += _plan_checks(component, chain, builder, task, gates.checks, measures)
        options = recipe.benchmark
        runtime = "tensorrt" if device and device.provider is None else chain.runtime
        if runtime is not None and options is not None:
            benchmark = BenchmarkConfig(
                task=task.name,
                component=component,
                runtime=runtime,
                axes=task.axes,
                shapes=_benchmark_shapes(recipe, task),
                launches=options.launches,
                threads=options.threads or cores(),
                margin=gates.speed.margin if gates.speed else 0.05,
                reference_device="cuda" if device and _torch_has_cuda() else "cpu",
                provider=device.provider if device else None,
                profile=dict(builder.profile) if device and device.provider else {},
            )
            benchmarks[component] = builder.add(
                _benchmark_stage(device),
                benchmark,
                {
                    "checkpoint": SourceRef("checkpoint"),
                    "model": device.node if device else links[-1].node,
                    "samples": measures.samples[component],
                    **({"cache": device.cache} if device and device.cache else {}),
                },
                component=component,
            )
    return TargetPlan(
        name=name,
        chain=chain,
        validations=validations,
        benchmarks=benchmarks,
        checks=tuple(checks),
    )


def _benchmark_stage(device: DeviceRun | None) -> AnyStage:
    if device is None:
        return BENCHMARK
    return BENCHMARK_ENGINE if device.provider is None else BENCHMARK_PROVIDER


def _torch_has_cuda() -> bool:
    """By its version: wheels for the CPU say so, and those of the package index for Linux do not."""
    torch = find_package("torch")
    return torch is not None and not torch.version.endswith("+cpu")


def _on_device(
    component: str, device: DeviceRun, builder: _Builder, recipe: Recipe, measures: _Measures
) -> tuple[ModelLink, NodeRef]:
    """What runs on the device as the last link of its chain, and the node that compares it."""
    stage: AnyStage = VALIDATE_ENGINE
    config: StageConfig
    if device.provider is not None:
        stage = VALIDATE_PROVIDER
        config = ValidateProviderConfig(
            task=builder.task_name,
            plan=device.provider,
            profile=dict(builder.profile),
            batch_size=recipe.shapes.batch.opt,
        )
    else:
        config = ValidateEngineConfig(
            task=builder.task_name,
            runtime="tensorrt" if device.runtime == "tensorrt" else "tensorrt-rtx",
            # Smaller ones would be filled up.
            batch_size=max(
                recipe.shapes.batch.opt, min(each[BATCH_AXIS][0] for each in device.profiles)
            ),
        )
    inputs: dict[str, Ref] = {
        "model": device.node,
        "samples": measures.samples[component],
        "probes": measures.probes[component],
        "reference": measures.references[component],
    }
    if device.cache is not None:
        inputs["cache"] = device.cache
    link = ModelLink(node=device.node, optimizations="disabled", arithmetic=device.arithmetic)
    return link, builder.add(stage, config, inputs, component=component)


def _plan_checks(
    component: str,
    chain: TargetChain,
    builder: _Builder,
    task: Task,
    limits: CheckLimits,
    measures: _Measures,
) -> Iterator[TargetCheck]:
    links = chain.models[component]
    drafts = [builder.drafts[link.node.node] for link in links]
    subject = Subject(
        component=component,
        links=tuple(
            Link(model=link, stage=draft.stage.name, config=draft.config, inputs=draft.inputs)
            for link, draft in zip(links, drafts, strict=True)
        ),
        samples=measures.samples[component],
        probes=measures.probes[component],
        reference=measures.references[component],
        task=task,
        profile=builder.profile,
        is_diagnosing=measures.is_diagnosing,
        device=chain.device_runs.get(component),
    )
    for check in CHECKS:
        own = getattr(limits, check.name)
        for wanted in check.plan(subject, own) if own is not None else ():
            node = builder.add(
                check.stage,
                wanted.config,
                wanted.inputs,
                component=component,
                label=wanted.link.stage,
            )
            yield TargetCheck(
                check=check.name, component=component, of=wanted.link.node, node=node
            )


def _named(drafts: list[_Draft], work: int) -> tuple[Node, ...]:
    """Give every node its address: the stage's name, and who asks for it where that is not enough.

    Those from `work` on only explain a failure.
    """
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
                is_diagnosis=index >= work,
            )
        )
    return tuple(nodes)


_PREPROCESSORS: Mapping[Modality, tuple[str, tuple[str, ...]]] = {
    "text": ("tokenizer", TOKENIZER_VOCABULARIES),
    "image": ("image processor", PROCESSOR_FILES),
    "audio": ("feature extractor", PROCESSOR_FILES),
}
"""What prepares samples of each kind, and the files of which one makes it."""


def _check_preprocessor(source: Source, task: Task) -> None:
    what, names = _PREPROCESSORS[task.modality]
    if not any(name in source.files for name in names):
        raise RecipeError(
            f"the checkpoint has no {what}, and without it there are no samples to compare on",
            hint=f"one of these must be in {source.root}: {', '.join(names)}",
        )
    if task.modality == "audio" and not any(n in source.files for n in TOKENIZER_VOCABULARIES):
        raise RecipeError(
            "the checkpoint has no tokenizer, and what its decoder should write is text",
            hint=f"one of these must be in {source.root}: {', '.join(TOKENIZER_VOCABULARIES)}",
        )


_CACHELESS_RUNTIMES: Mapping[str, str] = {
    "tensorrt": "an engine would need a range for the cache, which no recipe gives it yet",
    "tensorrt-rtx": "an engine would need a range for the cache, which no recipe gives it yet",
    "existing": "caches of decoders that were made elsewhere are not read yet",
}
"""Runtimes that decoders with a cache are not made for, and why."""


def _check_runtime(runtime: str, task: Task) -> None:
    if task.has_cache and runtime in _CACHELESS_RUNTIMES:
        raise RecipeError(
            f"task `{task.name}` has no targets of runtime `{runtime}`: "
            f"{_CACHELESS_RUNTIMES[runtime]}",
            hint="take `runtime: onnxruntime`",
        )


def _extents(recipe: Recipe, task: Task) -> dict[str, ShapeRange]:
    """Axis -> its range, for the task's axes in their order; those without a range are left out."""
    ranges = {axis: getattr(recipe.shapes, axis) for axis in task.axes}
    return {axis: extent for axis, extent in ranges.items() if extent is not None}


def _check_shapes(recipe: Recipe, task: Task, source: Source, where: Where) -> None:
    extents = _extents(recipe, task)
    for axis in type(recipe.shapes).model_fields:
        is_given = getattr(recipe.shapes, axis) is not None
        if is_given and axis not in task.axes:
            raise RecipeError(
                f"inputs of task `{task.name}` have no axis `{axis}`",
                where=where("shapes", axis),
                hint=f"its axes are: {', '.join(task.axes)}",
            )
        if not is_given and axis in task.axes:
            raise RecipeError(
                f"`shapes.{axis}` is missing: inputs of task `{task.name}` have this axis",
                where=where("shapes"),
                hint=f"add `{axis}: {{min: ..., opt: ..., max: ...}}`",
            )
    # TensorRT only warns of this and builds an engine that reads past the position embeddings.
    limit = source.max_positions
    longest = recipe.shapes.sequence.max if recipe.shapes.sequence else 0
    if limit is not None and longest > limit:
        raise RecipeError(
            f"sequences of {longest} tokens are asked for, and the checkpoint has {limit} positions",
            where=where("shapes", "sequence", "max"),
            hint=f"set it to {limit} or less",
        )
    for place, shape in enumerate(_benchmark_shapes(recipe, task)):
        if len(shape) != len(task.axes):
            raise RecipeError(
                f"{list(shape)} has {len(shape)} sizes, and inputs of task `{task.name}` have "
                f"{len(task.axes)} axes",
                where=where("benchmark", "shapes", place),
                hint=f"write [{', '.join(task.axes)}]",
            )
        for axis, value in zip(task.axes, shape, strict=True):
            extent = extents[axis]
            if not extent.min <= value <= extent.max:
                raise RecipeError(
                    f"{axis} {value} is measured, but `shapes.{axis}` goes from {extent.min} to "
                    f"{extent.max}",
                    where=where("benchmark", "shapes", place),
                    hint="measure shapes that the targets are made for",
                )


def _check_quality(recipe: Recipe, task: Task, where: Where) -> None:
    sections: list[tuple[tuple[str, ...], QualityGates]] = []
    if recipe.gates.quality is not None:
        sections.append((("gates", "quality"), recipe.gates.quality))
    sections += [
        (("gates", "targets", name, "quality"), own.quality)
        for name, own in recipe.gates.targets.items()
        if own.quality is not None
    ]
    known = metric_names(task)
    for place, quality in sections:
        for metric in quality.metrics:
            if metric not in known:
                near = difflib.get_close_matches(metric, known, n=1)
                raise RecipeError(
                    f"task `{task.name}` has no figure `{metric}`"
                    + (f" - did you mean `{near[0]}`?" if near else ""),
                    where=where(*place, "metrics", metric),
                    hint=f"its figures are: {', '.join(known)}" if known else "",
                )
        has_own = quality.score is not None or quality.drop is not None
        if has_own and task.answer is None:
            raise RecipeError(
                f"task `{task.name}` has no answers that could be right or wrong",
                where=where(*place),
                hint="limit the distance to the checkpoint in `gates.parity` instead"
                + (f", or one of these in `metrics`: {', '.join(known)}" if known else ""),
            )
        # A folder of images is labelled by its own folders.
        is_unlabelled = recipe.data.evaluation.label is None and task.modality == "text"
        if task.answer is not None and is_unlabelled:
            raise RecipeError(
                "a quality gate needs labelled evaluation data",
                where=where(*place),
                hint="say which column holds the true answer: `data.evaluation.label`",
            )


def _check_limits(recipe: Recipe, where: Where) -> None:
    """Limits may name any stage there is: a recipe that others extend has more than each of them."""
    named: list[tuple[tuple[str, ...], Collection[str]]] = [
        (("limits", "stages"), recipe.limits.stages),
        (("gates", "stages"), recipe.gates.stages),
    ]
    named += [
        (("gates", "targets", target, "stages"), own.stages)
        for target, own in recipe.gates.targets.items()
        if own.stages
    ]
    if not any(names for _, names in named):
        return
    from pipeline.stages.catalogue import STAGES

    known = sorted(stage.name for stage in STAGES)
    for key_path, names in named:
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise RecipeError(
                    f"there is no stage `{name}`"
                    + (f" - did you mean `{near[0]}`?" if near else f", only: {', '.join(known)}"),
                    where=where(*key_path, name),
                )


def _check_coverage(
    recipe: Recipe, targets: Sequence[TargetPlan], drafts: list[_Draft], where: Where
) -> None:
    """A limit must be of a number that a stage of some target may report as it is configured."""
    chains = [target.chain for target in targets]
    models = [link.node for chain in chains for links in chain.models.values() for link in links]
    given = [
        each.node for chain in chains for all_ in chain.deliverables.values() for each in all_
    ]
    delivering = {ref.node for ref in (*models, *given)}
    reporting = [drafts[index] for index in sorted(delivering)]
    known = sorted({name for draft in reporting for name in draft.stage.may_report(draft.config)})
    kinds = {name for draft in reporting for name in draft.stage.coverage}
    for name in recipe.gates.coverage:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        if name in kinds:
            message = f"no target of this recipe reports `{name}`: none has its precision"
        elif near:
            message = f"no stage of this recipe reports `{name}` - did you mean `{near[0]}`?"
        else:
            message = f"no stage of this recipe reports `{name}`"
        raise RecipeError(
            message,
            where=where("gates", "coverage", name),
            hint=f"leave the limit out, or limit one of these: {', '.join(known)}"
            if known
            else "leave the limit out: nothing here reports coverage",
        )


def _check_measured(
    recipe: Recipe, task: Task, target: str, chain: TargetChain, where: Where
) -> None:
    """Of an engine that is timed here, every shape must be one that a profile takes."""
    for device in chain.device_runs.values():
        for place, shape in enumerate(_benchmark_shapes(recipe, task) if device.profiles else ()):
            sizes = dict(zip(task.axes, shape, strict=True))
            if any(
                all(least <= sizes[axis] <= most for axis, (least, _, most) in profile.items())
                for profile in device.profiles
            ):
                continue
            assert recipe.benchmark is not None
            is_given = bool(recipe.benchmark.shapes)
            raise RecipeError(
                f"{', '.join(f'{axis} {size}' for axis, size in sizes.items())} is measured, and no "
                f"profile of `{target}` takes it",
                where=where("benchmark", "shapes", place) if is_given else where("benchmark"),
                hint="measure shapes (`benchmark.shapes`) that one of its `profiles` takes",
            )


def _benchmark_shapes(recipe: Recipe, task: Task) -> tuple[tuple[int, ...], ...]:
    if recipe.benchmark is None:
        return ()
    if recipe.benchmark.shapes:
        return recipe.benchmark.shapes
    usual = [extent.opt for extent in _extents(recipe, task).values()]
    return tuple(dict.fromkeys(((recipe.shapes.batch.min, *usual[1:]), tuple(usual))))


# --- keys -----------------------------------------------------------------------------------


def node_preimage(node: Node, inputs: Mapping[str, JSON]) -> dict[str, JSON]:
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
        "machine": {**machine_facts(stage.machine, gpu=node.config.gpu_number)},
    }


def _data_use(group: str) -> str:
    """The use that a group of data files is for; empty for groups of the checkpoint's files."""
    return group.removeprefix(DATA_GROUP) if group.startswith(DATA_GROUP) else ""


def input_digests(plan: Plan, node: Node, trees: Mapping[int, str]) -> dict[str, JSON] | None:
    """Port -> digest of its content; None while one of them is not known (`trees` lacks a parent).

    A checkpoint has a digest a file, so that `explain` can say which of them changed.
    """
    digests: dict[str, JSON] = {}
    for port, ref in node.inputs.items():
        if isinstance(ref, SourceRef):
            digests[port] = plan.group_content(ref.group)
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
        elif path.startswith("inputs."):
            state = "is new" if before is None else "is gone" if after is None else "has changed"
            yield f"`{name}` of the checkpoint {state}"
        elif name == "code":
            yield "the code of the stage changed"
        else:
            yield f"{here}: {_short(before)} -> {_short(after)}"


def _short(value: JSON) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def attempt_key(node: Node, preimage: Mapping[str, JSON]) -> str:
    """Under which attempts at a node find one another; empty when each begins anew.

    Args:
        node: The node.
        preimage: `node_preimage` of it.
    """
    ignored = node.stage.resumable
    if ignored is None:
        return ""
    config = node.config.model_dump(mode="json", exclude=set(ignored))
    return tagged_digest(ATTEMPT_TAG, {**preimage, "config": config})


def node_status(plan: Plan, node: Node, records: Records, trees: Mapping[int, str]) -> NodeStatus:
    """Whether a node's result is there, given the output digests of the nodes before it."""
    digests = input_digests(plan, node, trees)
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
