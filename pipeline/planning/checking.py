"""What a recipe may not ask for, found before anything runs."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.parity.quality.names import metric_names, why_impossible
from pipeline.planning.builder import Draft, extents_of
from pipeline.source import PROCESSOR_FILES, TOKENIZER_VOCABULARIES
from pipeline.source.decoder_start import check_decoder_start
from pipeline.source.generation_config import check_generation_config
from pipeline.source.rope import short_positions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pipeline.planning.types import TargetPlan, Where
    from pipeline.recipe.types import QualityGates, Recipe
    from pipeline.source import Source
    from pipeline.targets.base import TargetChain
    from pipeline.tasks import Modality, Task


_PREPROCESSORS: Mapping[Modality, tuple[str, tuple[str, ...]]] = {
    "text": ("tokenizer", TOKENIZER_VOCABULARIES),
    "image": ("image processor", PROCESSOR_FILES),
    "audio": ("feature extractor", PROCESSOR_FILES),
}
"""What prepares samples of each kind, and the files of which one makes it."""


def check_preprocessor(source: Source, task: Task) -> None:
    """Refuse a checkpoint without what prepares its samples, or that no text can be written with."""
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
    if task.has_cache:
        check_generation_config(source)
    if task.parts:
        check_decoder_start(source)


_NO_SOURCE_RANGE = (
    "an engine of its decoder would need a range for the source too, which no recipe gives"
)
_PAIRLESS_RUNTIMES: Mapping[str, str] = {
    "tensorrt": _NO_SOURCE_RANGE,
    "tensorrt-rtx": _NO_SOURCE_RANGE,
    "existing": "an encoder and its decoder that were made elsewhere are not checked together yet",
}
"""Runtimes that encoders with a decoder are not made for, and why."""


def check_runtime(runtime: str, task: Task) -> None:
    """Refuse a runtime that an encoder with a decoder is not made for."""
    if task.parts and runtime in _PAIRLESS_RUNTIMES:
        raise RecipeError(
            f"task `{task.name}` has no targets of runtime `{runtime}`: "
            f"{_PAIRLESS_RUNTIMES[runtime]}",
            hint="take `runtime: onnxruntime`",
        )


def check_shapes(recipe: Recipe, task: Task, source: Source, where: Where) -> None:
    """Refuse ranges and measured shapes that are not those of the task and of the checkpoint."""
    extents = extents_of(recipe, task)
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
        is_short = limit == short_positions(source.config)
        raise RecipeError(
            f"sequences of {longest} tokens are asked for, and the checkpoint has {limit} positions",
            where=where("shapes", "sequence", "max"),
            hint=f"set it to {limit} or less"
            + ("; longer texts have other frequencies (`longrope`)" if is_short else ""),
        )
    for place, shape in enumerate(benchmark_shapes(recipe, task)):
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


def check_quality(recipe: Recipe, task: Task, source: Source, where: Where) -> None:
    """Refuse quality gates on figures that the task, the checkpoint or the data cannot have."""
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
            if reason := why_impossible(metric, source.config):
                raise RecipeError(
                    f"`{metric}` cannot be computed: {reason}",
                    where=where(*place, "metrics", metric),
                    hint="leave the limit out",
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


def check_limits(recipe: Recipe, where: Where) -> None:
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


def check_coverage(
    recipe: Recipe, targets: Sequence[TargetPlan], drafts: list[Draft], where: Where
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


def check_left_out(
    target: str, chain: TargetChain, drafts: Sequence[Draft], recipe: Recipe, where: Where
) -> None:
    """Refuse to leave the comparison of what is delivered out."""
    gates = recipe.gates.of(target)
    for links in chain.models.values():
        stage = drafts[links[-1].node.node].stage.name
        if not gates.leaves_out(stage):
            continue
        own = recipe.gates.targets.get(target)
        is_own = own is not None and own.stages is not None
        place = ("gates", "targets", target) if is_own else ("gates",)
        raise RecipeError(
            f"`{stage}` makes what `{target}` delivers: its comparison with the checkpoint is never "
            "left out",
            where=where(*place, "stages", stage),
            hint="null is for graphs on the way to it: leave this line out",
        )


def check_static_caches(recipe: Recipe, where: Where) -> None:
    """Refuse a cache of a fixed length that what is timed does not fit into."""
    for place, target in enumerate(recipe.targets):
        cache = getattr(target, "static_cache", None)
        speed = recipe.gates.of(target.name).checks.generation_speed
        if cache is None or speed is None or recipe.shapes.sequence is None:
            continue
        usual = recipe.shapes.batch.opt, recipe.shapes.sequence.opt
        _, prompt, tokens = max(speed.works(*usual), key=lambda work: work[1] + work[2])
        if cache.length < prompt + tokens:
            whose = "" if speed.shapes else " (`shapes.sequence.opt`)"
            raise RecipeError(
                f"a static cache of {cache.length} tokens is shorter than what `generation_speed` times: "
                f"prompts of {prompt} tokens{whose} and {tokens} new ones",
                where=where("targets", place, "static_cache", "length"),
                hint=f"set it to {prompt + tokens} or more",
            )


def check_measured(
    recipe: Recipe, task: Task, target: str, chain: TargetChain, where: Where
) -> None:
    """Of an engine that is timed here, every shape must be one that a profile takes."""
    for device in chain.device_runs.values():
        for place, shape in enumerate(benchmark_shapes(recipe, task) if device.profiles else ()):
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


def benchmark_shapes(recipe: Recipe, task: Task) -> tuple[tuple[int, ...], ...]:
    """What is measured: the recipe's shapes, or one sample and the usual batch at the usual sizes."""
    if recipe.benchmark is None:
        return ()
    if recipe.benchmark.shapes:
        return recipe.benchmark.shapes
    usual = [extent.opt for extent in extents_of(recipe, task).values()]
    return tuple(dict.fromkeys(((recipe.shapes.batch.min, *usual[1:]), tuple(usual))))
