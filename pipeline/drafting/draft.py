"""A recipe for a checkpoint: task, shapes, data, targets and limits, each with its reason.

Nothing is written that would be refused: the text is loaded and planned first.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checks.quantization import QuantizationLimits
from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.drafting.columns import ColumnOptions
from pipeline.drafting.layout import Layout, lay_out
from pipeline.drafting.measure import examine, find_data_columns
from pipeline.drafting.targets import candidates
from pipeline.environment import installed_onnxruntime
from pipeline.errors import ArtifactError, EnvironmentMissing, RecipeError
from pipeline.planning import build_plan
from pipeline.recipe import load_recipe_file
from pipeline.recipe.types import NAME_PATTERN, PRINTABLE_PATTERN, DataSpec, Recipe
from pipeline.resolving import resolve_plan
from pipeline.source import resolve_source
from pipeline.source.cached_decoders import check_keeps_cache
from pipeline.source.traced_decoders import trace_fault
from pipeline.tasks import TASKS, check_task, find_task, fitting_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.data_source import DataSource
    from pipeline.drafting.measure import Examined
    from pipeline.source import Source
    from pipeline.tasks import Task

GENERIC_NAMES = frozenset({"", ".", "model", "checkpoint", "onnx", "weights", "snapshot"})
"""Names of folders that say nothing of what is in them."""
MAX_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What is asked of a draft.

    Attributes:
        model: The checkpoint, as a recipe says it; paths start at the current directory.
        output: Where the recipe is written.
        store: Root of the store, which remembers digests of files.
        revision: Of a checkpoint on a hub.
        task: Its task; None: the first that fits.
        data: File or folder of evaluation data; None: made-up samples.
        calibration: The same for calibration; None: the rest of the evaluation data.
        name: Of the artifact; None: the checkpoint's.
        must_replace: An existing file is replaced.
    """

    model: str
    output: Path
    store: Path
    revision: str | None = None
    task: str | None = None
    data: str | None = None
    calibration: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    name: str | None = None
    must_replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A recipe that was written.

    Attributes:
        path: Where.
        recipe: What it asks for.
        other_tasks: Names of other tasks that fit the checkpoint.
        left_out: Target -> what it needs that is not here.
        evaluation: The evaluation data, when it is the user's.
        notes: What a reader should know.
    """

    path: Path
    recipe: Recipe
    other_tasks: tuple[str, ...]
    left_out: Mapping[str, str]
    evaluation: Examined | None
    notes: tuple[str, ...]


def draft_recipe(options: DraftOptions, note: Callable[[str], None] = lambda _: None) -> Draft:
    """Write a recipe that `convert` runs at once.

    Args:
        options: What is asked for.
        note: Is told, a line at a time, what is fetched from a hub.

    Raises:
        RecipeError: the checkpoint, the data or an option is not what it must be, or the file is
            there already.
        EnvironmentMissing: a package is not installed, or a hub cannot be reached.
        ArtifactError: the checkpoint is damaged, or the file cannot be written.
    """
    require_words(options)
    _require_place(options)
    memory = DigestMemory(options.store / "digests.json")
    here = Path.cwd()
    source = resolve_source(
        options.model,
        recipe_directory=here,
        memory=memory,
        revision=options.revision,
        where="MODEL",
        where_revision="--revision",
        note=note,
    )
    task, others = choose_task(source, options.task)
    _require_pairs(task, options)
    evaluation = examine_data(options.data, "--data", task, source, options.columns, memory)
    calibration = examine_data(
        options.calibration,
        "--calibration",
        task,
        source,
        replace(options.columns, label=None, has_labels=False),
        memory,
    )
    is_scalar = gives_one_number(source, task)
    layout = Layout(
        name=options.name or name_of(options.model),
        source=written_model(options.model, here, options.output.parent),
        revision=source.revision if _is_on_hub(source) else None,
        task=task,
        other_tasks=others,
        positions=positions_of(source, task),
        is_scalar=is_scalar,
        evaluation=evaluation,
        calibration=calibration,
        evaluation_source=written_data(options.data, here, options.output.parent),
        calibration_source=written_data(options.calibration, here, options.output.parent),
        targets=candidates(
            task,
            source.config,
            is_scalar=is_scalar,
            has_calibration=calibration is not None,
        ),
    )
    missing = _find_missing(layout, source, here, memory)
    text, notes = lay_out(layout, missing)
    recipe = _write(text, options, memory, note)
    memory.save()
    return Draft(
        path=options.output,
        recipe=recipe,
        other_tasks=tuple(other.name for other in others),
        left_out=missing,
        evaluation=evaluation,
        notes=(*source.notes, *notes),
    )


def require_words(options: DraftOptions) -> None:
    """Refuse names that a recipe could not say."""
    columns = options.columns
    words = (
        ("MODEL", options.model),
        ("--data", options.data),
        ("--calibration", options.calibration),
        ("--text", columns.text),
        ("--text-pair", columns.text_pair),
        ("--image", columns.image),
        ("--audio", columns.audio),
        ("--target-text", columns.target),
        ("--label", columns.label),
        *(("--choices", choice) for choice in columns.choices),
    )
    for option, word in words:
        if word is not None and not re.fullmatch(PRINTABLE_PATTERN, word):
            raise RecipeError(
                f"{word!r} is empty or has control characters, and a recipe cannot say it",
                where=option,
            )
    if options.name is not None and not re.fullmatch(NAME_PATTERN, options.name):
        raise RecipeError(
            f"`{options.name}` is no name of an artifact",
            where="--name",
            hint="use up to 64 lower-case letters, digits, `.`, `_` and `-`",
        )


def _require_place(options: DraftOptions) -> None:
    path = options.output
    if path.is_dir():
        raise RecipeError(
            f"`{path}` is a folder", where="--output", hint=f"--output {path / 'recipe.yaml'}"
        )
    if os.path.lexists(path) and not options.must_replace:
        raise RecipeError(
            f"`{path}` is there already",
            where="--output",
            hint="give another name with --output, or replace it with --force",
        )
    if not path.parent.is_dir():
        raise RecipeError(
            f"there is no folder `{path.parent}`",
            where="--output",
            hint=f"mkdir -p {path.parent}",
        )


def choose_task(source: Source, asked: str | None) -> tuple[Task, tuple[Task, ...]]:
    """The task that is asked for, or the first that fits; and the others that fit."""
    fitting = [task for task in fitting_tasks(source.config) if _fits(source, task)]
    # Sentence encoders are often saved with the head they were trained with, which nobody uses.
    if "modules.json" in source.files:
        fitting.sort(key=lambda task: task.name != "feature-extraction")
    if asked is not None:
        task = find_task(asked)
        check_task(source.config, task)
        check_keeps_cache(source.config, task)
    elif fitting:
        task = fitting[0]
        if not task.head_suffixes:
            _require_no_lost_decoder(source, task)
    else:
        classes = source.config.get("architectures")
        names = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else ""
        raise RecipeError(
            "no task fits the checkpoint, "
            + (f"which was saved as {names}" if names else "whose config.json names no class"),
            where="MODEL",
            hint=f"the tasks are: {', '.join(task.name for task in TASKS)}; each needs one "
            "encoder, and most need a head of their own, such as ...ForSequenceClassification",
        )
    return task, tuple(other for other in fitting if other.name != task.name)


def _require_no_lost_decoder(source: Source, left: Task) -> None:
    """Refuse to take a model that writes text for one that gives features, unless that is asked for.

    Raises:
        RecipeError: it was saved to write text, and cannot be converted for that.
    """
    for task in fitting_tasks(source.config):
        if task.has_cache and task.head_suffixes:
            try:
                check_keeps_cache(source.config, task)
            except RecipeError as err:
                hint = f"{err.hint}; `--task {left.name}` converts the model without its head"
                if trace_fault(source.config):  # what cannot be traced is not in the head
                    hint = err.hint
                raise RecipeError(err.message, where="MODEL", hint=hint) from err


def _require_pairs(task: Task, options: DraftOptions) -> None:
    """What a decoder should write cannot be made up, and ranges are not taken of it.

    Raises:
        RecipeError: there is no data, or calibration data that nothing would read.
    """
    if not task.parts:
        return
    if options.data is None:
        first = "audio" if task.modality == "audio" else "text"
        example = json.dumps({first: "...", task.columns["target"]: "..."})
        raise RecipeError(
            f"task `{task.name}` needs data: what should be written cannot be made up",
            where="--data",
            hint=f"give a .jsonl, .csv, .tsv or .parquet file with rows such as {example}",
        )
    if options.calibration is not None:
        raise RecipeError(
            f"task `{task.name}` takes no calibration data: its 8 bits have scales taken at run time",
            where="--calibration",
            hint="leave it out",
        )


def gives_one_number(source: Source, task: Task) -> bool:
    """Whether the head is one of regression, such as a similarity of two sentences."""
    names = source.config.get("id2label")
    count = len(names) if isinstance(names, dict) else source.config.get("num_labels")
    return task.answer == "class" and count == 1


def positions_of(source: Source, task: Task) -> int | None:
    """The longest sequence that the checkpoint takes; None when it does not say."""
    written = source.config.get("max_target_positions") if task.parts else None
    limits = [each for each in (source.max_positions, written) if isinstance(each, int)]
    return min(limits, default=None)


def _fits(source: Source, task: Task) -> bool:
    try:
        check_task(source.config, task)
        check_keeps_cache(source.config, task)
    except RecipeError:
        return False
    return True


def examine_data(
    named: str | None,
    option: str,
    task: Task,
    source: Source,
    columns: ColumnOptions,
    memory: DigestMemory,
) -> Examined | None:
    """Look into the data that an option names; None when it names none.

    Raises:
        RecipeError: there is none, or it is not of the task's kind.
    """
    if named is None:
        return None
    prefix, colon, _ = named.partition(":")
    if colon and prefix in {"builtin", "datasets"}:
        raise RecipeError(
            f"`{named}` is neither a file nor a folder",
            where=option,
            hint="draft the recipe without it, and write it into `data` of the recipe",
        )
    spec = DataSpec(source=named, samples="all")
    data = resolve_data(spec, directory=Path.cwd(), memory=memory, where=option)
    if data.kind == "images" and task.modality != "image":
        reads = "sounds" if task.modality == "audio" else "texts"
        raise RecipeError(
            f"`{named}` is a folder of images, and task `{task.name}` reads {reads}",
            where=option,
            hint="give a .jsonl, .csv, .tsv or .parquet file",
        )
    found = find_data_columns(task, data, columns)
    if data.kind == "images":
        found = replace(found, image=None, label=None)
    elif found.image or found.audio:  # its files belong to the data too
        spec = spec.model_copy(update={"image": found.image, "audio": found.audio})
        data = resolve_data(spec, directory=Path.cwd(), memory=memory, where=option)
    return examine(
        task,
        source,
        data,
        found,
        is_label_given=columns.label is not None,
        limit=positions_of(source, task),
    )


# --- names and paths ------------------------------------------------------------------------


def name_of(model: str) -> str:
    """A name for the artifact: the last word of the checkpoint's that says something."""
    parts = [*Path(model.rpartition(":")[2]).parts]
    if not parts or parts[-1] in {".", ".."}:
        parts = [*Path(model).resolve().parts]
    telling = [part for part in parts if part.strip("./~").casefold() not in GENERIC_NAMES]
    text = re.sub(r"[^a-z0-9._-]+", "-", (telling or ["model"])[-1].lower())
    return text.lstrip("._-")[:MAX_NAME].rstrip("._-") or "model"


def _is_on_hub(source: Source) -> bool:
    from pipeline.source.directory import Directory

    return not isinstance(source.location, Directory)


def written_model(model: str, here: Path, home: Path) -> str:
    """The source for a recipe in `home`; what is no directory is the same everywhere."""
    path = here / Path(model).expanduser()
    kind = re.match(r"[a-z][a-z0-9+.-]*:", model)
    if kind or not path.is_dir():
        return model
    written = _written_path(path, here, home)
    # `org/name` would be a checkpoint on the hub.
    return written if written.startswith(("/", "../", "./")) else f"./{written}"


def written_data(data: str | None, here: Path, home: Path) -> str:
    """The source of samples for a recipe in `home`; empty for none."""
    if data is None:
        return ""
    written = _written_path(here / Path(data).expanduser(), here, home)
    # A word before a colon would be a kind of source.
    is_mistaken = written.startswith("~") or re.match(r"[a-z][a-z0-9+.-]*:", written)
    return f"./{written}" if is_mistaken else written


def _written_path(path: Path, here: Path, home: Path) -> str:
    """Relative to the recipe when both lie in one tree, so that the tree can be moved as a whole."""
    path, home = Path(os.path.abspath(path)), home.resolve()  # noqa: PTH100 - keeps links
    here = here.resolve()
    is_together = path.is_relative_to(home) or (
        path.is_relative_to(here) and home.is_relative_to(here)
    )
    return Path(os.path.relpath(path, home)).as_posix() if is_together else path.as_posix()


# --- planning -------------------------------------------------------------------------------


def _find_missing(
    layout: Layout, source: Source, here: Path, memory: DigestMemory
) -> dict[str, str]:
    """Target -> what it needs that is not here. Each target is planned alone to know.

    Raises:
        EnvironmentMissing: none can be built here.
    """
    installed_onnxruntime()
    missing: dict[str, str] = {}
    first: EnvironmentMissing | None = None
    for candidate in layout.targets:
        if candidate.needs_calibration and (few := _too_few_samples(layout)):
            missing[candidate.name] = few
            continue
        recipe = Recipe.model_validate_json(layout.probe(candidate))
        data = _resolve_probe(layout, recipe, here, memory)
        try:
            build_plan(recipe, source, data)
        except EnvironmentMissing as error:
            first = first or error
            missing[candidate.name] = (
                f"{error.message}: {error.hint}" if error.hint else error.message
            )
    if first is not None and len(missing) == len(layout.targets):
        raise first
    return missing


def _too_few_samples(layout: Layout) -> str:
    """Why static INT8 would fail its check with the data there is; empty when it would not."""
    least = QuantizationLimits().calibration_samples or 0
    _, samples = layout.counts(has_calibration=True)
    if samples >= least:
        return ""
    option = "--data" if layout.calibration is None else "--calibration"
    return (
        f"ranges need {least} calibration samples or more, and there would be {samples}: "
        f"give more rows with {option}"
    )


def _resolve_probe(
    layout: Layout, recipe: Recipe, here: Path, memory: DigestMemory
) -> dict[str, DataSource]:
    """The data of a probe; what was examined is not resolved again."""
    examined = {"evaluation": layout.evaluation, "calibration": layout.calibration_data}
    return {
        use: replace(found.data, spec=spec)
        if (found := examined[use]) is not None
        else resolve_data(spec, directory=here, memory=memory)
        for use, spec in recipe.data.specs().items()
    }


def _write(
    text: str, options: DraftOptions, memory: DigestMemory, note: Callable[[str], None]
) -> Recipe:
    """Put the text in its place once it has been loaded and planned from there."""
    path = options.output
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        recipe = _load_and_plan(temporary, memory, note)
        if options.must_replace:
            temporary.replace(path)
        else:
            with path.open("x", encoding="utf-8") as file:  # fails when somebody was faster
                file.write(text)
    except FileExistsError as error:
        raise RecipeError(
            f"`{path}` was made meanwhile", where="--output", hint="run again with --force"
        ) from error
    except OSError as error:
        raise ArtifactError(f"`{path}` cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return recipe


def _load_and_plan(path: Path, memory: DigestMemory, note: Callable[[str], None]) -> Recipe:
    loaded = load_recipe_file(path)
    resolve_plan(loaded, memory, note=note)
    return loaded.recipe
