"""The checkpoint in torch on this machine's GPU: nodes of a comparison that no gate judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.environment import cores, find_package
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.gpu import this_machine
from pipeline.planning.checking import benchmark_shapes
from pipeline.planning.types import TorchRunPlan
from pipeline.stages.benchmark import BENCHMARK_TORCH, BenchmarkConfig
from pipeline.stages.validate_torch import VALIDATE_TORCH, ValidateTorchConfig
from pipeline.targets.base import SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.builder import Builder
    from pipeline.planning.targets import Measures
    from pipeline.planning.types import Where
    from pipeline.recipe.types import Recipe
    from pipeline.runtimes.torch_variants import TorchVariant
    from pipeline.tasks import Task

_ENGINES = frozenset({"tensorrt", "tensorrt-rtx"})


def torch_has_cuda() -> bool:
    """By its version: wheels for the CPU say so, and those of the package index for Linux do not."""
    torch = find_package("torch")
    return torch is not None and not torch.version.endswith("+cpu")


def check_cuda_graphs(recipe: Recipe, where: Where) -> None:
    """Refuse CUDA graphs where there is nothing that they could be of.

    Raises:
        RecipeError: the recipe has no engine.
    """
    if recipe.benchmark is None or not recipe.benchmark.cuda_graphs:
        return
    if not any(target.runtime in _ENGINES for target in recipe.targets):
        raise RecipeError(
            "CUDA graphs are of engines, and no target has runtime tensorrt or tensorrt-rtx",
            where=where("benchmark", "cuda_graphs"),
            hint="leave `cuda_graphs` out",
        )


def plan_torch_runs(
    builder: Builder, recipe: Recipe, task: Task, measures: Measures, where: Where
) -> Iterator[TorchRunPlan]:
    """Two nodes for each way in which the recipe wants torch to be compared.

    Raises:
        RecipeError: of a decoder, which torch runs here step by step alone.
        EnvironmentMissing: there is no GPU, or torch is built for the CPU.
    """
    options = recipe.benchmark
    if options is None or not options.torch_cuda:
        return
    place = where("benchmark", "torch_cuda")
    if task.has_cache:
        raise RecipeError(
            f"models of task `{task.name}` have a cache, and torch is compared with whole inputs only",
            where=place,
            hint="leave `torch_cuda` out",
        )
    _require_cuda(place)
    for component in task.components:
        for variant in options.torch_cuda:
            yield _plan_run(builder, recipe, task, measures, component, variant)


def _plan_run(
    builder: Builder,
    recipe: Recipe,
    task: Task,
    measures: Measures,
    component: str,
    variant: TorchVariant,
) -> TorchRunPlan:
    options = recipe.benchmark
    assert options is not None
    checkpoint, samples = SourceRef("checkpoint"), measures.samples[component]
    config = ValidateTorchConfig(
        task=task.name,
        component=component,
        variant=variant,
        device="cuda",
        batch_size=recipe.shapes.batch.opt,
    )
    timing = BenchmarkConfig(
        task=task.name,
        component=component,
        runtime="torch",
        axes=task.axes,
        shapes=benchmark_shapes(recipe, task),
        launches=options.launches,
        threads=options.threads or cores(),
        margin=recipe.gates.speed.margin if recipe.gates.speed else 0.05,
        reference_device="cuda",
        variant=variant,
    )
    return TorchRunPlan(
        variant=variant,
        component=component,
        validation=builder.add(
            VALIDATE_TORCH,
            config,
            {
                "checkpoint": checkpoint,
                "samples": samples,
                "probes": measures.probes[component],
                "reference": measures.references[component],
            },
            component=component,
            fixed_label=variant,
        ),
        benchmark=builder.add(
            BENCHMARK_TORCH,
            timing,
            {"checkpoint": checkpoint, "model": checkpoint, "samples": samples},
            component=component,
            fixed_label=variant,
        ),
    )


def _require_cuda(place: str) -> None:
    machine = this_machine()
    if machine.gpu is None:
        reason = (
            f"the NVIDIA driver {machine.driver} shows none: {machine.trouble}"
            if machine.driver
            else "this machine has no NVIDIA driver"
        )
        raise EnvironmentMissing(
            f"torch is to be compared on a GPU, and {reason}",
            where=place,
            hint="leave `torch_cuda` out, or take a machine with a GPU",
        )
    if not torch_has_cuda():
        raise EnvironmentMissing(
            "torch is to be compared on a GPU, and the torch that is installed is built for the CPU",
            where=place,
            hint="pip install --force-reinstall torch, from the package index, which has CUDA in it",
        )
