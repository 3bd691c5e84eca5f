"""What measures a target: comparisons of its graphs, checks, and a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.checks.base import Link, Subject
from pipeline.checks.catalogue import CHECKS
from pipeline.environment import cores
from pipeline.planning.checking import benchmark_shapes
from pipeline.planning.torch_runs import torch_has_cuda
from pipeline.planning.types import LeftOut, TargetCheck, TargetPlan
from pipeline.stages.benchmark import (
    BENCHMARK,
    BENCHMARK_ENGINE,
    BENCHMARK_PROVIDER,
    BenchmarkConfig,
)
from pipeline.stages.validate import VALIDATE, ValidateConfig
from pipeline.stages.validate_engine import VALIDATE_ENGINE, ValidateEngineConfig
from pipeline.stages.validate_provider import VALIDATE_PROVIDER, ValidateProviderConfig
from pipeline.targets.base import ModelLink, NodeRef, Ref, SourceRef
from pipeline.tasks import BATCH_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.checks.limits import CheckLimits
    from pipeline.planning.builder import Builder
    from pipeline.recipe.types import Gates, Recipe
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.targets.base import DeviceRun, TargetChain
    from pipeline.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What every target is measured with, by component."""

    samples: Mapping[str, NodeRef]
    probes: Mapping[str, NodeRef]
    references: Mapping[str, NodeRef]
    is_diagnosing: bool = False


@dataclass(slots=True, kw_only=True)
class _Looks:
    """What is looked at besides comparisons, and what the recipe leaves out."""

    checks: list[TargetCheck] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)

    def add(self, other: _Looks) -> None:
        """Those of another component."""
        self.checks += other.checks
        self.left_out += other.left_out
        self.omitted += other.omitted

    def fields(self) -> dict[str, Any]:
        """As a `TargetPlan` has them."""
        return {
            "checks": tuple(self.checks),
            "left_out": tuple(self.left_out),
            "left_out_checks": tuple(dict.fromkeys(self.omitted)),
        }


def with_diagnosis(
    target: TargetPlan, builder: Builder, recipe: Recipe, task: Task, measures: Measures
) -> TargetPlan:
    """The target with the checks that explain its failure."""
    builder.prefix = target.name
    limits = recipe.gates.of(target.name).checks
    looks = _Looks()
    for component in target.chain.models:
        looks.add(
            _plan_checks(component, target.chain, builder, task, limits, measures, target.left_out)
        )
    return replace(target, **looks.fields())


def plan_target(
    name: str,
    chain: TargetChain,
    builder: Builder,
    recipe: Recipe,
    task: Task,
    measures: Measures,
) -> TargetPlan:
    """Add what measures a target: a comparison of every model in its chain, checks, and a benchmark."""
    gates = recipe.gates.of(name)
    validations = {}
    benchmarks = {}
    looks = _Looks()
    for component, links in chain.models.items():
        found = []
        missing = _left_out(component, links, builder, gates)
        for link in links:
            if any(each.link is link for each in missing):
                continue
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
                (
                    link,
                    builder.add(VALIDATE, config, inputs, component=component, label=label),
                )
            )
        if device := chain.device_runs.get(component):
            found.append(_on_device(component, device, builder, recipe, measures))
        validations[component] = tuple(found)
        looks.add(_plan_checks(component, chain, builder, task, gates.checks, measures, missing))
        options = recipe.benchmark
        runtime = "tensorrt" if device and device.provider is None else chain.runtime
        if runtime is not None and options is not None:
            benchmark = BenchmarkConfig(
                task=task.name,
                component=component,
                runtime=runtime,
                axes=task.axes,
                shapes=benchmark_shapes(recipe, task),
                launches=options.launches,
                threads=options.threads or cores(),
                margin=gates.speed.margin if gates.speed else 0.05,
                reference_device="cuda" if device and torch_has_cuda() else "cpu",
                cuda_graphs=options.cuda_graphs and runtime == "tensorrt",
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
        **looks.fields(),
    )


def _left_out(
    component: str, links: Sequence[ModelLink], builder: Builder, gates: Gates
) -> tuple[LeftOut, ...]:
    """Graphs whose comparison the recipe leaves out; never the last (`checking.check_left_out`)."""
    names = [builder.drafts[link.node.node].stage.name for link in links]
    return tuple(
        LeftOut(component=component, link=link, stage=stage)
        for link, stage in zip(links, names, strict=True)
        if gates.leaves_out(stage)
    )


def _benchmark_stage(device: DeviceRun | None) -> AnyStage:
    if device is None:
        return BENCHMARK
    return BENCHMARK_ENGINE if device.provider is None else BENCHMARK_PROVIDER


def _on_device(
    component: str,
    device: DeviceRun,
    builder: Builder,
    recipe: Recipe,
    measures: Measures,
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
                recipe.shapes.batch.opt,
                min(each[BATCH_AXIS][0] for each in device.profiles),
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
    builder: Builder,
    task: Task,
    limits: CheckLimits,
    measures: Measures,
    left_out: Sequence[LeftOut],
) -> _Looks:
    """The checks of a component, and what is left out."""
    links = chain.models[component]
    drafts = [builder.drafts[link.node.node] for link in links]
    subject = Subject(
        component=component,
        links=tuple(
            Link(
                model=link,
                stage=draft.stage.name,
                config=draft.config,
                inputs=draft.inputs,
            )
            for link, draft in zip(links, drafts, strict=True)
        ),
        samples=measures.samples[component],
        probes=measures.probes[component],
        reference=measures.references[component],
        task=task,
        profile=builder.profile,
        is_diagnosing=measures.is_diagnosing,
        models=chain.models,
        sources=builder.evaluation_samples() if task.parts else None,
        device=chain.device_runs.get(component),
    )
    looks = _Looks()
    skipped: dict[NodeRef, list[str]] = {each.link.node: [] for each in left_out}
    for check in CHECKS:
        own = getattr(limits, check.name)
        usual = type(limits).model_fields[check.name].default
        if own is None and usual is not None and any(check.plan(subject, usual)):
            looks.omitted.append(check.name)
        for wanted in check.plan(subject, own) if own is not None else ():
            if check.is_run and wanted.link.node in skipped:
                skipped[wanted.link.node].append(check.name)
                continue
            node = builder.add(
                check.stage,
                wanted.config,
                wanted.inputs,
                component=component,
                label=wanted.link.stage,
            )
            looks.checks.append(
                TargetCheck(check=check.name, component=component, of=wanted.link.node, node=node)
            )
    looks.left_out = [
        replace(each, checks=tuple(dict.fromkeys(skipped[each.link.node])))
        for each in left_out
        if each.component == component
    ]
    return looks
