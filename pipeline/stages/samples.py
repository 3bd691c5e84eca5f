"""Prepare the samples that models are compared on, or calibrated with: rows in, tensors out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.errors import StageError
from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.data.labels import Classes
    from pipeline.data.prepare.base import Fields, Preparation
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import SampleEntry, SampleSet
    from pipeline.data.take import Taken
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext
    from pipeline.tasks import Task

TOKENIZER_PORT = "tokenizer"
DATA_PORT = "data"
EVALUATION_PORT = "evaluation"

MAX_SAMPLES = 100_000
"""Beyond this `all` is refused, as the recipe's language refuses the number."""
MAX_SHOWN_OVERLAP = 5


def _without_folder(source: str) -> str:
    """An absolute path would put this machine's folders into the key."""
    prefix, colon, path = source.rpartition(":")
    return f"{prefix}{colon}{Path(path).name}" if Path(path).is_absolute() else source


class SamplesConfig(StageConfig):
    """Which samples, and how long they may be.

    Attributes:
        source: As the recipe says it, for people; what it holds comes through the port `data`.
        kind: How it is read, a kind of `pipeline.data.readers`.
        max_length: Longest sample, tokens with the special ones; longer texts are cut. None for
            images.
        num_choices: Most choices of a question; None for tasks without.
        use: What the samples are for. Calibration samples are taken from outside the evaluation
            samples while rows suffice, and have labels only where a column of labels is named: a
            repair of a quantisation may count right answers on them.
        start: Token with which a decoder behind an encoder begins; None for other models.
        overlap: What calibration samples that are evaluation samples too are.
    """

    source: Annotated[str, AfterValidator(_without_folder)]
    kind: str
    task: str
    samples: Annotated[int, Field(ge=1)] | Literal["all"]
    seed: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=1)] | None = None
    num_choices: Annotated[int, Field(ge=2)] | None = None
    text: str | None = None
    text_pair: str | None = None
    choices: str | tuple[str, ...] | None = None
    image: str | None = None
    audio: str | None = None
    target: str | None = None
    label: str | None = None
    subset: str | None = None
    split: str | None = None
    start: int | None = None
    use: Literal["evaluation", "calibration"] = "evaluation"
    overlap: Literal["warn", "error"] = "warn"


def run(
    config: SamplesConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write a sample set; facts say how long the samples are and how they are labelled.

    Args:
        config: Which samples.
        inputs: `tokenizer` (the checkpoint's tokenizer or processor, and `config.json`), `data`
            (the files of the source; not for built-in ones) and `evaluation` (the evaluation
            samples; for calibration only).
        output: Where to write.
        context: Is told how many samples are done.

    Raises:
        StageError: when a row cannot be read or does not hold what the task needs, there are fewer
            than are asked for, none of them has a label though a column of labels is named, or both
            sets share samples and must not.
        RecipeError: when a column is named that the task does not read.
        EnvironmentMissing: when a package that reads the source is not installed.
    """
    from pipeline.data.prepare.base import Setting
    from pipeline.data.prepare.registry import prepare_for
    from pipeline.data.sample_set import NO_LABEL, SampleIndex, load_samples, save_samples
    from pipeline.data.take import take_samples
    from pipeline.tasks import find_task

    task = find_task(config.task)
    fields = _pick_fields(config, task, inputs)
    classes = _read_classes(task, fields, inputs)
    setting = Setting(
        checkpoint=inputs[TOKENIZER_PORT],
        data=inputs.get(DATA_PORT),
        fields=fields,
        max_length=_max_length(config, task),
        num_choices=config.num_choices or 0,
        classes=classes,
        start=config.start,
    )
    preparation = prepare_for(task, setting)
    others = load_samples(inputs[EVALUATION_PORT]) if EVALUATION_PORT in inputs else None
    try:
        taken = take_samples(
            lambda: _read_rows(config, task, fields, inputs, others, context),
            preparation.prepare,
            count=None if config.samples == "all" else config.samples,
            seed=config.seed,
            columns=fields.columns,
            others=frozenset(entry.fingerprint for entry in others.entries)
            if others
            else frozenset(),
            progress=context.progress,
        )
    except StageError as error:
        error.where = error.where or config.source
        raise
    if classes is not None and fields.label is not None:
        classes.check(fields.label)
    if fields.label is not None:
        _require_labels(fields.label, taken, config)
    _check_overlap(config, taken)
    _log(preparation, taken, context)
    entries = _write_entries(taken, output, has_pictures=config.use == "evaluation")
    index = SampleIndex(
        source=config.source,
        use=config.use,
        seed=config.seed,
        max_length=config.max_length,
        inputs=dict(preparation.inputs),
        label_names=classes.names if classes else (),
        samples=entries,
    )
    fingerprint = save_samples(
        index, [sample.prepared.tensors for sample in taken.samples], output
    )
    names = dict(enumerate(index.label_names)) | {NO_LABEL: ""}
    return {
        "samples": len(entries),
        "rows_seen": taken.rows_seen,
        "inputs": sorted(index.inputs),
        **_describe_sizes(taken),
        "cut_at_max_length": sum(sample.prepared.is_cut for sample in taken.samples),
        "labels": _describe_labels(taken, names),
        "repeated": len(entries) - len({entry.fingerprint for entry in entries}),
        "overlap": sum(sample.is_shared for sample in taken.samples),
        "warnings": _warnings(taken),
        **preparation.notes,
        "fingerprint": fingerprint,
    }


def _pick_fields(config: SamplesConfig, task: Task, inputs: Mapping[str, Path]) -> Fields:
    """The columns to read. Folders of images are labels without being asked for."""
    from dataclasses import replace

    from pipeline.data.fields import pick_fields
    from pipeline.data.image_files import find_images

    fields = pick_fields(task, config)
    if config.use == "calibration" and config.label is None:
        return replace(fields, label=None)
    if config.kind == "images" and task.answer == "class" and fields.label is None:
        first = next(iter(find_images(inputs[DATA_PORT])), "")
        return replace(fields, label="label" if "/" in first else None)
    return fields


def _read_classes(task: Task, fields: Fields, inputs: Mapping[str, Path]) -> Classes | None:
    from pipeline.data.labels import read_classes

    if fields.label is None or task.answer not in {"class", "token_classes"}:
        return None
    return read_classes(inputs[TOKENIZER_PORT])


def _max_length(config: SamplesConfig, task: Task) -> int:
    if config.max_length is None and task.modality != "image":
        raise StageError(
            "the longest length of samples is not set", hint="add `shapes.sequence` to the recipe"
        )
    return config.max_length or 0


def _read_rows(
    config: SamplesConfig,
    task: Task,
    fields: Fields,
    inputs: Mapping[str, Path],
    others: SampleSet | None,
    context: StageContext,
) -> Iterable[Row]:
    from pipeline.data.image_size import image_size
    from pipeline.data.readers import find_reader
    from pipeline.data.rows import Request

    count = 0 if config.samples == "all" else config.samples
    if others is not None and others.index.source == config.source:
        # A built-in source gives what is asked for, so ask for the evaluation samples as well.
        count += len(others)
    request = Request(
        source=config.source,
        directory=inputs.get(DATA_PORT),
        columns=fields.columns,
        scratch=context.scratch,
        samples=count,
        seed=config.seed,
        max_length=config.max_length or 0,
        size=image_size(inputs[TOKENIZER_PORT])[1:] if task.modality == "image" else (0, 0),
        subset=config.subset,
        split=config.split,
    )
    for number, row in enumerate(find_reader(config.kind).read(request)):
        if config.samples == "all" and number == MAX_SAMPLES:
            raise StageError(
                f"there are more than {MAX_SAMPLES} rows, and `samples` is `all`",
                where=config.source,
                hint="write a number, such as `samples: 1000`",
            )
        yield row


def _require_labels(column: str, taken: Taken, config: SamplesConfig) -> None:
    """A recipe that names a column of labels wants right answers counted."""
    if any(sample.prepared.label is not None for sample in taken.samples):
        return
    reasons = Counter(sample.prepared.unlabelled_because for sample in taken.samples)
    raise StageError(
        f"none of {len(taken.samples)} samples has a label: "
        + (
            "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()) if reason)
            or f"column `{column}` is empty"
        ),
        where=config.source,
        hint="leave `label` out of `data` when nothing is labelled; answers that were cut off need "
        "a larger `shapes.sequence.max`",
    )


def _check_overlap(config: SamplesConfig, taken: Taken) -> None:
    shared = [sample for sample in taken.samples if sample.is_shared]
    if not shared or config.overlap != "error":
        return
    shown = ", ".join(sample.where for sample in shared[:MAX_SHOWN_OVERLAP])
    raise StageError(
        f"{len(shared)} of {len(taken.samples)} calibration samples are evaluation samples too: "
        f"{shown}" + (", ..." if len(shared) > MAX_SHOWN_OVERLAP else ""),
        where=config.source,
        hint="ask for fewer samples, give more data, or write `overlap: warn` in `data`",
    )


def _warnings(taken: Taken) -> list[JSON]:
    """What the report must say at the top."""
    shared = sum(sample.is_shared for sample in taken.samples)
    if not shared:
        return []
    warning = (
        f"{shared} of {len(taken.samples)} calibration samples are evaluation samples too, so that "
        "a quantised target may look better than it is on other data"
    )
    return [warning]


def _log(preparation: Preparation, taken: Taken, context: StageContext) -> None:
    """Say what a reader of the facts may overlook."""
    if "pad_token" in preparation.notes and preparation.notes["pad_token"] is None:
        fill = preparation.inputs["input_ids"].fill
        context.log(f"the checkpoint names no padding token, id {fill} is used")
    reasons = Counter(sample.prepared.unlabelled_because for sample in taken.samples)
    for reason, count in sorted(reasons.items()):
        if reason:
            context.log(f"{count} samples are unlabelled: {reason}")
    if shared := sum(sample.is_shared for sample in taken.samples):
        context.log(f"{shared} samples are evaluation samples too")


def _write_entries(taken: Taken, output: Path, *, has_pictures: bool) -> tuple[SampleEntry, ...]:
    """What the index says of each sample; small pictures are written on the way."""
    from pipeline.data.sample_set import IMAGE_FOLDER, SampleEntry

    entries = []
    for index, sample in enumerate(taken.samples):
        prepared, image = sample.prepared, None
        if has_pictures and prepared.picture is not None:
            image = f"{IMAGE_FOLDER}/{index:06d}.png"
            (output / IMAGE_FOLDER).mkdir(exist_ok=True)
            prepared.picture.save(output / image)
        entries.append(
            SampleEntry(
                index=index,
                text=prepared.text,
                extents=dict(prepared.extents),
                label=prepared.label,
                image=image,
                fingerprint=sample.fingerprint,
            )
        )
    return tuple(entries)


def _describe_sizes(taken: Taken) -> dict[str, JSON]:
    """How large the named axes get; for samples of one size, which one that is."""
    from pipeline.tasks import CHOICES_AXIS, SEQUENCE_AXIS

    found: dict[str, JSON] = {}
    for axis, name in ((SEQUENCE_AXIS, "tokens"), (CHOICES_AXIS, "choices")):
        sizes = [s.prepared.extents[axis] for s in taken.samples if axis in s.prepared.extents]
        if sizes:
            found[name] = _describe_lengths(sizes)
    first = taken.samples[0].prepared
    if not first.extents:
        found["size"] = {name: list(tensor.shape) for name, tensor in first.tensors.items()}
    return found


def _describe_labels(taken: Taken, names: Mapping[int, str]) -> dict[str, JSON]:
    """How many samples have a label, how often each class comes, why others have none."""
    labels = [sample.prepared.label for sample in taken.samples]
    reasons = Counter(sample.prepared.unlabelled_because for sample in taken.samples)
    described: dict[str, JSON] = {
        "labelled": sum(label is not None for label in labels),
        "unlabelled_because": {reason: count for reason, count in reasons.items() if reason},
    }
    classes: Counter[str] = Counter()
    for label in labels:
        found = label if isinstance(label, tuple) else (label,)
        classes.update(
            names[number] for number in found if number is not None and names.get(number)
        )
    return described | ({"classes": dict(sorted(classes.items()))} if classes else {})


def _describe_lengths(lengths: Sequence[int]) -> dict[str, JSON]:
    """Nearest-rank percentiles: each one is the length of a real sample."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {
        "min": ordered[0],
        "median": ordered[round(0.5 * last)],
        "p90": ordered[round(0.9 * last)],
        "max": ordered[-1],
    }


SAMPLES = Stage(
    name="samples",
    version=3,
    footprint=Footprint(base_mib=100),
    config_type=SamplesConfig,
    run=run,
    # transformers is imported for images, and for checkpoints without tokenizer.json.
    packages=("numpy", "tokenizers", "transformers"),
    # Vocabularies without tokenizer.json are read with the last two.
    optional_packages=("datasets", "pillow", "pyarrow", "sentencepiece", "tiktoken"),
    # The built-in source reads the standard library's docstrings, which differ between patch releases.
    machine=("python_version",),
)
