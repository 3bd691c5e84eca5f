"""Recipe -> Plan: all the work, in an order in which it can be done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data.fields import pick_fields
from pipeline.planning.builder import Builder, named_nodes
from pipeline.planning.checking import (
    check_coverage,
    check_left_out,
    check_limits,
    check_measured,
    check_preprocessor,
    check_quality,
    check_runtime,
    check_shapes,
    check_static_caches,
)
from pipeline.planning.keys import require_nodes_packages
from pipeline.planning.serving import check_serving
from pipeline.planning.targets import Measures, plan_target, with_diagnosis
from pipeline.planning.torch_runs import check_cuda_graphs, plan_torch_runs
from pipeline.planning.types import Plan, Where, about, plain_key_path
from pipeline.source.cached_decoders import check_keeps_cache
from pipeline.stages.noise_floor import NOISE_FLOOR, NoiseFloorConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.targets.base import Ref, SourceRef
from pipeline.tasks import check_task, find_task

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pipeline.candidates import Candidate
    from pipeline.data_source import DataSource
    from pipeline.recipe.types import Recipe
    from pipeline.source import Source
    from pipeline.source.files import SourceFile


def build_plan(
    recipe: Recipe,
    source: Source,
    data: Mapping[str, DataSource],
    where: Where = plain_key_path,
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
    with about(where, "model", "task"):
        task = find_task(recipe.model.task)
        check_task(source.config, task)
    with about(where, "model", "source"):
        check_keeps_cache(source.config, task)
        check_preprocessor(source, task)
    check_shapes(recipe, task, source, where)
    check_quality(recipe, task, source, where)
    check_serving(recipe, source, candidates or {}, where)
    for use, spec in recipe.data.specs().items():
        with about(where, "data", use):
            pick_fields(task, spec)
    builder = Builder(recipe, task, source, data, candidates or {})
    with about(where, "model", "source"):
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
    measures = Measures(samples=samples, probes=probes, references=references)
    targets = []
    for place, target in enumerate(recipe.targets):
        builder.prefix = target.name
        with about(where, "targets", place):
            check_runtime(target.runtime, task)
            chain = target.chain(builder)
        check_measured(recipe, task, target.name, chain, where)
        check_left_out(target.name, chain, builder.drafts, recipe, where)
        targets.append(plan_target(target.name, chain, builder, recipe, task, measures))
    check_static_caches(recipe, where)
    check_cuda_graphs(recipe, where)
    torch_runs = tuple(plan_torch_runs(builder, recipe, task, measures, where))
    work = len(builder.drafts)
    # Behind all others, so that those keep their places: they are there already.
    explained = replace(measures, is_diagnosing=True)
    targets = [
        with_diagnosis(target, builder, recipe, task, explained)
        if target.name in diagnosed
        else target
        for target in targets
    ]
    check_coverage(recipe, targets, builder.drafts, where)
    check_limits(recipe, where)
    nodes = named_nodes(builder.drafts, work)
    require_nodes_packages(nodes)
    return Plan(
        recipe=recipe,
        source=source,
        data=data,
        task=task,
        nodes=nodes,
        targets=tuple(targets),
        samples=evaluation,
        noise_floors=noise_floors,
        torch_runs=torch_runs,
        candidates=candidates or {},
        timing_caches=timing_caches or {},
    )
