"""The recipe behind `convert check`: one target that exists already, judged like any other.

It stays in memory. Everything that was assumed because nobody said it is kept as a sentence, so that
the result can show it: a verdict by limits that nobody chose must say which ones they were.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.candidates import match_interface, precision_of
from pipeline.digest_memory import DigestMemory
from pipeline.drafting.columns import ColumnOptions
from pipeline.drafting.draft import (
    MAX_NAME,
    choose_task,
    examine_data,
    gives_one_number,
    name_of,
    written_data,
    written_model,
)
from pipeline.drafting.layout import Layout
from pipeline.drafting.targets import parity_limits
from pipeline.errors import RecipeError
from pipeline.listing import is_artifact, read_facts
from pipeline.recipe.load import load_recipe_text
from pipeline.resolving import resolve_candidate
from pipeline.source import resolve_source
from pipeline.stages.adopt import ADOPT
from pipeline.targets.existing import fed_inputs, has_sentence
from pipeline.tasks import BATCH_AXIS, SEQUENCE_AXIS, find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.candidates import Candidate, Interface
    from pipeline.drafting.targets import Limits
    from pipeline.parity.tolerances import Arithmetic
    from pipeline.recipe import LoadedRecipe
    from pipeline.source import Source
    from pipeline.tasks import Task

TARGET = "candidate"
"""The one target's name."""
RECIPE_NAME = "check.yaml"
"""What messages call the recipe that is in memory."""
MOST_SAMPLES = 100_000
"""What a recipe may ask for."""
DROP = {"float32": 0.005, "float16": 0.01, "bfloat16": 0.02, "quantized": 0.02}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What is asked of a check.

    Attributes:
        candidate: An `.onnx` file, a folder, or an artifact of ours.
        reference: The checkpoint, as a recipe says it; None: that of the recipe.
        store: Root of the store, which remembers digests of files.
        recipe: Says task, shapes, data and limits; None: they are drafted.
        like: Of that recipe, the target whose own limits hold; None: those for all.
        file: Which model of the folder.
        target: Which target of the artifact.
        rename: The graph's name of an input or output -> ours.
        has_benchmark: Time it against torch.
        may_skip: Gates that cannot run here may stay unchecked.
    """

    candidate: str
    reference: str | None
    store: Path
    recipe: LoadedRecipe | None = None
    like: str | None = None
    revision: str | None = None
    task: str | None = None
    data: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    samples: int | None = None
    file: str | None = None
    target: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    has_benchmark: bool = False
    may_skip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDraft:
    """A check, ready to run.

    Attributes:
        loaded: The recipe in memory.
        candidate: The model.
        precision: What it computes with, in words.
        assumed: What nobody said, a sentence each.
        notes: What was found of its inputs and outputs, and of the checkpoint.
    """

    loaded: LoadedRecipe
    candidate: Candidate
    precision: str
    assumed: tuple[str, ...]
    notes: tuple[str, ...]


def draft_check(options: CheckOptions, note: Callable[[str], None] = lambda _: None) -> CheckDraft:
    """Find out what is to be checked, and write the recipe for it.

    Args:
        options: What is asked for.
        note: Is told, a line at a time, what is fetched from a hub.

    Raises:
        RecipeError: the candidate, the checkpoint, the data or an option is not what it must be.
        ArtifactError: a file is damaged, or an artifact is not what its manifest says.
        EnvironmentMissing: a package is not installed, or a hub cannot be reached.
    """
    memory = DigestMemory(options.store / "digests.json")
    source, written_source = _find_reference(options, memory, note)
    path = _find_path(options)
    candidate = resolve_candidate(
        path, options.file, directory=Path.cwd(), memory=memory, where="CANDIDATE"
    )
    asked = options.task or (options.recipe.recipe.model.task if options.recipe else None)
    try:
        task, interface, others = _choose(source, candidate, asked, options.rename)
    except RecipeError as error:
        error.where = error.where or "CANDIDATE"
        raise
    target: dict[str, Any] = {"name": TARGET, "runtime": "existing", "model": path}
    target |= {"file": options.file} if options.file else {}
    target |= {"rename": dict(options.rename)} if options.rename else {}
    model = {**written_source, "task": task.name}
    precision = precision_of(candidate.facts)
    found = _Found(
        source=source,
        task=task,
        others=others,
        interface=interface,
        arithmetic=precision.arithmetic,
        name=_name(options),
    )
    drafting = _from_recipe if options.recipe is not None else _from_nothing
    document, assumed = drafting(options, found, memory)
    document |= {"name": found.name, "model": model, "targets": [target]}
    document["benchmark"] = (document.get("benchmark") or {}) if options.has_benchmark else None
    if options.may_skip:
        document["gates"]["allow_not_run"] = ["device_parity", "speed"]
    memory.save()
    return CheckDraft(
        loaded=load_recipe_text(json.dumps(document, indent=2) + "\n", RECIPE_NAME),
        candidate=candidate,
        precision=precision.words,
        assumed=assumed,
        notes=(*source.notes, *interface.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the files say."""

    source: Source
    task: Task
    others: tuple[Task, ...]
    interface: Interface
    arithmetic: Arithmetic
    name: str


def _find_reference(
    options: CheckOptions, memory: DigestMemory, note: Callable[[str], None]
) -> tuple[Source, dict[str, Any]]:
    """The checkpoint, and what the recipe says of it."""
    directory, spec, revision, where = (
        Path.cwd(),
        options.reference,
        options.revision,
        "--reference",
    )
    loaded = options.recipe
    if spec is None:
        if loaded is None:
            raise RecipeError(
                "nothing says what the candidate was made from",
                where="--reference",
                hint="name the checkpoint: --reference DIRECTORY, hub:ORG/NAME or package:NAME/path",
            )
        spec, revision = loaded.recipe.model.source, loaded.recipe.model.revision
        directory, where = loaded.directory("model", "source"), loaded.where("model", "source")
    source = resolve_source(
        spec,
        recipe_directory=directory,
        memory=memory,
        revision=revision,
        where=where,
        where_revision="--revision",
        note=note,
    )
    written = {"source": written_model(spec, directory, Path.cwd())}
    return source, written | ({"revision": revision} if revision else {})


def _find_path(options: CheckOptions) -> str:
    """The candidate's path; of an artifact of ours, the folder of one of its targets.

    Raises:
        RecipeError: there is nothing, or the artifact has several targets and none is named.
    """
    path = Path(options.candidate).expanduser()
    if not path.is_dir() or not is_artifact(path):
        if options.target is not None:
            raise RecipeError(
                f"`{options.candidate}` is no artifact of convert, and only these have targets",
                where="--target",
            )
        return options.candidate
    names = [target.name for target in read_facts(path).targets]
    names = [name for name in names if (path / name).is_dir()]
    if options.target is None and len(names) == 1:
        return str(path / names[0])
    if options.target not in names:
        raise RecipeError(
            f"the artifact has the targets {', '.join(names) or 'none'}"
            + (f", and not `{options.target}`" if options.target else ""),
            where="--target",
            hint=f"say which one: --target {names[0]}" if names else "",
        )
    return str(path / options.target)


def _choose(
    source: Source, candidate: Candidate, asked: str | None, renames: Mapping[str, str]
) -> tuple[Task, Interface, tuple[Task, ...]]:
    """The first task that fits both the checkpoint and the candidate, and the others that do."""
    first, others = choose_task(source, asked)
    if first.parts:
        raise RecipeError(
            f"models of task `{first.name}` are two graphs, and one is checked at a time here",
            hint="convert the checkpoint: its recipe checks both together",
        )
    fitting: list[tuple[Task, Interface]] = []
    refusals: list[RecipeError] = []
    given = {tensor.name for tensor in candidate.facts.outputs}
    is_named = any(spec.name in given for spec in first.outputs)
    for task in (first, *(() if asked else others)):
        # Logits of another model are no hidden states of this one.
        if is_named and all(spec.name not in given for spec in task.outputs):
            continue
        try:
            interface = match_interface(
                candidate.facts,
                task,
                fed=fed_inputs(task, source),
                has_sentence=has_sentence(source),
                renames=renames,
                config=source.config,
            )
        except RecipeError as error:
            refusals.append(error)
        else:
            fitting.append((task, interface))
    if not fitting:
        raise refusals[0]
    task, interface = fitting[0]
    return task, interface, tuple(other for other, _ in fitting[1:])


def _name(options: CheckOptions) -> str:
    if options.name is not None:
        return options.name
    named = (
        options.candidate if options.target is None else f"{options.candidate}/{options.target}"
    )
    path = Path(named)
    stem = name_of(str(path.with_suffix("") if path.suffix == ".onnx" else path))
    if options.file is not None and options.file != "model.onnx":
        stem = f"{stem}-{name_of(str(Path(options.file).with_suffix('')))}"
    return f"check-{stem}"[:MAX_NAME].rstrip("._-")


# --- without a recipe -----------------------------------------------------------------------


def _from_nothing(
    options: CheckOptions, found: _Found, memory: DigestMemory
) -> tuple[dict[str, Any], tuple[str, ...]]:
    task, source = found.task, found.source
    evaluation = examine_data(options.data, "--data", task, source, options.columns, memory)
    is_scalar = gives_one_number(source, task)
    layout = Layout(
        name=found.name,
        source="",
        revision=None,
        task=task,
        other_tasks=found.others,
        positions=source.max_positions,
        is_scalar=is_scalar,
        evaluation=evaluation,
        calibration=None,
        evaluation_source=written_data(options.data, Path.cwd(), Path.cwd()),
        calibration_source="",
        targets=(),
    )
    data: dict[str, Any] = dict(layout.evaluation_document(has_calibration=False))
    if options.samples is not None:
        data["samples"] = options.samples
    gates: dict[str, Any] = {
        "parity": default_limits(task, found.arithmetic, is_scalar=is_scalar),
    }
    assumed = []
    if options.task is None:
        others = ", ".join(other.name for other in found.others)
        assumed.append(f"task {task.name}" + (f" (others that fit: {others})" if others else ""))
    if options.data is None:
        assumed.append(
            f"{data['samples']} made-up samples ({data['source']}); --data for your own"
        )
    assumed.append(f"limits for {found.arithmetic}: {_in_words(gates['parity'])}")
    if layout.is_labelled:
        assert evaluation is not None
        labelled = data["samples"] * evaluation.measured.labelled // evaluation.measured.taken
        drop = max(DROP[found.arithmetic], 1 / max(1, labelled))
        gates["quality"] = {"drop": {"max": round(drop + 5e-5, 4)}}
        assumed.append(f"at most {gates['quality']['drop']['max']:.2%} of right answers lost")
    shapes = _shapes(layout, found.interface)
    return {
        "recipe": 1,
        "shapes": shapes,
        "data": {"evaluation": data},
        "gates": gates,
    }, tuple(assumed)


def _shapes(layout: Layout, interface: Interface) -> dict[str, dict[str, int]]:
    """The usual ranges, as far as the candidate can be fed."""
    shapes = layout.shapes()
    for axis, size in interface.fixed.items():
        usual = shapes[axis]
        if axis not in {BATCH_AXIS, SEQUENCE_AXIS}:
            shapes[axis] = dict.fromkeys(usual, size)
            continue
        limited = {name: min(value, size) for name, value in usual.items()}
        # As many samples at once as it takes, so that all of its rows are looked at.
        shapes[axis] = limited | ({"opt": size, "max": size} if axis == BATCH_AXIS else {})
    return shapes


def default_limits(task: Task, arithmetic: Arithmetic, *, is_scalar: bool = False) -> Limits:
    """Limits on the distance to the checkpoint for a model of which nobody said what it may lose.

    For floats those of `convert init`; what is strict there is the gate of the noise floor. 8 bits
    lose what the tool makes of it. Measured with MiniLM in ONNX Runtime's own dynamic quantisation,
    smallest cosine and mean over 64 texts: one scale a column 0.936 to 0.961 and 0.987 to 0.989; one
    scale a weight, uint8 0.863 and 0.972; one scale a weight, int8 0.758 and 0.941, which is
    known to cost real accuracy. The limits lie before the last. Decoders have few bits mostly, and the
    limits of `convert init` for these.

    Args:
        task: What the checkpoint is for.
        arithmetic: What the candidate computes with.
        is_scalar: The head gives one number.
    """
    if arithmetic != "quantized":
        precision = "fp32" if arithmetic == "float32" else "fp16"
        limits = parity_limits(task, precision, is_scalar=is_scalar)
        if arithmetic == "bfloat16":
            limits = parity_limits(task, "int8", is_scalar=is_scalar)
        return limits
    if is_scalar:
        return {"relative_l2": {"max": 0.35}}
    if task.has_cache:
        return parity_limits(task, "int4")
    limits = {
        "cosine_similarity": {"min": 0.8},
        "cosine_similarity_mean": {"min": 0.95},
        "relative_l2": {"max": 0.35},
    }
    return limits | ({"top1_agreement": {"min": 0.9}} if task.ranked else {})


def _in_words(limits: Limits) -> str:
    signs = {"min": ">=", "max": "<="}
    return ", ".join(
        f"{name} {signs[end]} {value:g}"
        for name, bound in limits.items()
        for end, value in bound.items()
    )


# --- with a recipe --------------------------------------------------------------------------


def _from_recipe(
    options: CheckOptions, found: _Found, memory: DigestMemory
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the recipe says of shapes, data and limits; what it builds is left out."""
    loaded = options.recipe
    assert loaded is not None
    recipe = loaded.recipe
    names = [target.name for target in recipe.targets]
    if options.like is not None and options.like not in names:
        raise RecipeError(
            f"the recipe has no target `{options.like}`",
            where="--like",
            hint=f"its targets are {', '.join(names)}",
        )
    gates = recipe.gates.of(options.like) if options.like else recipe.gates
    written = gates.model_dump(mode="json", exclude_unset=True)
    written.pop("targets", None)
    dropped = [name for name in gates.coverage if name not in ADOPT.coverage]
    written["coverage"] = {
        name: bound
        for name, bound in (written.get("coverage") or {}).items()
        if name in ADOPT.coverage
    }
    assumed = [
        f"the recipe's limit on {name} is not judged: nothing of a model from elsewhere tells it"
        for name in dropped
    ]
    if not options.has_benchmark and written.pop("speed", None) is not None:
        assumed.append("speed is not judged; --benchmark measures it")
    own = [name for name, each in recipe.gates.targets.items() if each.parity is not None]
    if own and options.like is None:
        assumed.append(
            f"the recipe's limits for all targets hold; --like {own[0]} takes those of that target"
        )
    data = recipe.data.evaluation.model_dump(mode="json", exclude_none=True)
    if options.data is not None:
        examined = examine_data(
            options.data,
            "--data",
            find_task(found.task.name),
            found.source,
            options.columns,
            memory,
        )
        assert examined is not None
        data = {
            "source": written_data(options.data, Path.cwd(), Path.cwd()),
            "samples": min(examined.measured.rows, _most(data["samples"])),
            **_columns_of(examined.columns),
        }
    elif ":" not in data["source"]:
        home = loaded.directory("data", "evaluation", "source")
        data["source"] = str((home / Path(data["source"]).expanduser()).resolve())
    if options.samples is not None:
        data["samples"] = options.samples
    document: dict[str, Any] = {
        "recipe": 1,
        "shapes": recipe.shapes.model_dump(mode="json", exclude_none=True),
        "data": {"evaluation": data},
        "gates": written,
        "benchmark": recipe.benchmark.model_dump(mode="json", exclude_none=True)
        if recipe.benchmark
        else None,
        "limits": recipe.limits.model_dump(mode="json", exclude_none=True),
    }
    return document, tuple(assumed)


def _most(samples: int | str) -> int:
    return samples if isinstance(samples, int) else MOST_SAMPLES


def _columns_of(columns: Any) -> dict[str, Any]:
    names = ("text", "text_pair", "choices", "image", "label")
    return {
        name: value for name in names if (value := getattr(columns, name, None)) not in (None, ())
    }
