"""How long the samples of a data set are and whether its labels are the checkpoint's.

Rows are read and prepared exactly as the stage `samples` will, with its own readers and preparation:
what passes here is what a run will find.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.drafting.columns import find_columns
from pipeline.errors import RecipeError, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.data.labels import Classes
    from pipeline.data.prepare.base import Fields, Prepared, Setting
    from pipeline.data.rows import Row
    from pipeline.data_source import DataSource
    from pipeline.drafting.columns import ColumnOptions, Columns
    from pipeline.source import Source
    from pipeline.tasks import Task

SEED = 0
MEASURED_ROWS = 1000
"""Enough for the 99th percentile; the rows that a recipe takes are the first of them."""
MEASURED_SOUNDS = 64
"""Every one is read whole and becomes a spectrogram."""
MEASURED_IMAGES = 8
"""Images all have one size after preparation; a few show that they can be decoded at all."""
UNLIMITED_TOKENS = 1 << 16
MOST_CHOICES = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the rows of a data set are like.

    Attributes:
        rows: How many there are.
        taken: How many of them were prepared.
        lengths: Tokens of each of those, ascending, the longer of source and target where there are
            two; empty for images.
        choices: Choices of each of those, ascending; empty for other tasks.
        cut: How many are longer than the checkpoint has positions.
        labelled: How many have a label that counts.
    """

    rows: int
    taken: int
    lengths: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()
    cut: int = 0
    labelled: int = 0

    def length(self, percent: float) -> int:
        """A nearest-rank percentile of the lengths: the length of a real sample."""
        return self.lengths[round(percent / 100 * (len(self.lengths) - 1))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A data set that was looked into.

    Attributes:
        columns: Which column holds what; all None for a folder of images.
        is_labelled: Its labels are the checkpoint's.
        note: Why labels that are there are not used; empty otherwise.
    """

    data: DataSource
    columns: Columns
    measured: Measured
    is_labelled: bool
    note: str = ""


def examine(
    task: Task,
    source: Source,
    data: DataSource,
    columns: Columns,
    *,
    is_label_given: bool,
    limit: int | None,
) -> Examined:
    """Read all rows of a data set, and prepare a seeded sample of them.

    Args:
        task: What samples are for.
        source: The checkpoint; its tokenizer or image processor is used.
        data: Where rows come from.
        columns: Which column holds what.
        is_label_given: The user says where labels are, so that they must fit.
        limit: The longest sequence that the checkpoint takes; None when it does not say.

    Raises:
        RecipeError: a row cannot be read or does not hold what the task needs, there are none, or
            labels that must fit do not.
        EnvironmentMissing: a package that reads the data is not installed.
    """
    is_folder = data.kind == "images"
    note = ""
    try:
        measured = _measure(task, source, data, columns, limit)
        if columns.label is not None and not measured.labelled:
            note = f"no row has a label in column `{columns.label}` that counts"
    except StageError as error:
        if columns.label is None or is_label_given:
            raise _as_usage(error, data) from error
        note = _one_sentence(error)
    if note and is_label_given:
        raise RecipeError(note, where=data.spec.source, hint="leave `--label` out")
    if note:
        columns = replace(columns, label=None)
        try:
            measured = _measure(task, source, data, columns, limit)
        except StageError as error:  # it was not the labels
            raise _as_usage(error, data) from error
    return Examined(
        data=data,
        columns=columns,
        measured=measured,
        is_labelled=bool(measured.labelled) and (is_folder or columns.label is not None),
        note=note,
    )


def list_columns(data: DataSource) -> tuple[str, ...]:
    """The columns of a table, or of a folder of images.

    Raises:
        RecipeError: its first row cannot be read, or there is none.
    """
    from pipeline.data.readers import find_reader
    from pipeline.data.rows import Request

    with tempfile.TemporaryDirectory(prefix="convert-init-") as scratch:
        content = Path(scratch, "data")
        content.mkdir()
        data.materialise(content)
        if data.kind == "parquet":
            # Its reader gives the columns that are asked for only; these are in its footer.
            return _parquet_columns(content, data)
        request = Request(
            source=data.spec.source, directory=content, columns=(), scratch=Path(scratch)
        )
        try:
            first = next(iter(find_reader(data.kind).read(request)), None)
        except StageError as error:
            raise _as_usage(error, data) from error
    if first is None:
        raise RecipeError("there are no rows", where=data.spec.source, hint="give data with rows")
    return tuple(first.values)


def find_data_columns(task: Task, data: DataSource, given: ColumnOptions) -> Columns:
    """The columns that a task reads; a folder of images has none to choose from.

    Raises:
        RecipeError: a column is not there, or it is not clear which one is meant.
    """
    return find_columns(task, list_columns(data), given, data.spec.source)


def _parquet_columns(directory: Path, data: DataSource) -> tuple[str, ...]:
    import pyarrow
    from pyarrow import parquet

    from pipeline.data.readers.parquet import SUFFIXES
    from pipeline.data.tables import find_table

    try:
        return tuple(parquet.read_schema(find_table(directory, SUFFIXES)).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecipeError(
            f"the file cannot be read as Parquet: {error}", where=data.spec.source
        ) from error


def _measure(
    task: Task, source: Source, data: DataSource, columns: Columns, limit: int | None
) -> Measured:
    from pipeline.data.choose import choose_rows
    from pipeline.data.fields import pick_fields
    from pipeline.data.labels import read_classes
    from pipeline.data.prepare.base import Setting
    from pipeline.data.readers import find_reader
    from pipeline.data.rows import Request
    from pipeline.source.decoder_start import decoder_start

    with tempfile.TemporaryDirectory(prefix="convert-init-") as scratch:
        checkpoint, content = Path(scratch, "checkpoint"), Path(scratch, "data")
        for directory in (checkpoint, content, Path(scratch, "reader")):
            directory.mkdir()
        source.materialise("tokenizer", checkpoint)
        data.materialise(content)
        fields = _with_folder_labels(task, data, pick_fields(task, columns))
        has_classes = fields.label is not None and task.answer in {"class", "token_classes"}
        setting = Setting(
            checkpoint=checkpoint,
            data=content,
            fields=fields,
            max_length=limit or UNLIMITED_TOKENS,
            num_choices=MOST_CHOICES,
            classes=read_classes(checkpoint) if has_classes else None,
            start=decoder_start(source) if task.parts else None,
        )
        request = Request(
            source=data.spec.source,
            directory=content,
            columns=fields.columns,
            scratch=Path(scratch, "reader"),
            subset=data.spec.subset,
            split=data.spec.split,
        )
        rows: Iterable[Row] = find_reader(data.kind).read(request)
        if setting.classes is not None and task.answer == "class":
            rows = _checked(rows, setting.classes, fields)
        count = MEASURED_SOUNDS if task.modality == "audio" else MEASURED_ROWS
        choice = choose_rows(rows, count=count, seed=SEED, columns=fields.columns)
        if setting.classes is not None and fields.label is not None:
            setting.classes.check(fields.label)
        chosen = [row for _, row in choice.rows]
        return _summary(task, _prepared(task, setting, chosen), choice.seen, len(chosen))


def _with_folder_labels(task: Task, data: DataSource, fields: Fields) -> Fields:
    """Folders of images are labels without being asked for, as in the stage `samples`."""
    is_labelled = data.kind == "images" and any("/" in name for name in data.files)
    return replace(fields, label="label") if is_labelled and task.answer == "class" else fields


def _checked(rows: Iterable[Row], classes: Classes, fields: Fields) -> Iterator[Row]:
    """The same rows, of which the labels have all been read, not those of the chosen ones only."""
    for row in rows:
        if fields.label in row.values:
            classes.read(row, str(fields.label))
        yield row


def _prepared(task: Task, setting: Setting, rows: Sequence[Row]) -> list[Prepared]:
    from pipeline.data.prepare.registry import prepare_for

    preparation = prepare_for(task, setting)
    count = MEASURED_IMAGES if task.modality == "image" else len(rows)
    found = []
    for row in rows[:count]:
        try:
            found.append(preparation.prepare(row))
        except StageError as error:
            error.where = error.where or row.where
            raise
    if setting.classes is not None and setting.fields.label is not None:
        setting.classes.check(setting.fields.label)
    return found


def _summary(task: Task, prepared: Sequence[Prepared], seen: int, chosen: int) -> Measured:
    from pipeline.data.decoder_inputs import TARGET_AXIS
    from pipeline.tasks import CHOICES_AXIS, SEQUENCE_AXIS

    if not prepared:
        raise StageError("there are no rows", hint="give data with rows")
    extents = [sample.extents for sample in prepared]
    labelled = sum(sample.label is not None for sample in prepared)
    lengths = [
        [extent[axis] for axis in (SEQUENCE_AXIS, TARGET_AXIS) if axis in extent]
        for extent in extents
    ]
    return Measured(
        rows=seen,
        taken=chosen,
        lengths=tuple(sorted(max(each) for each in lengths if each)),
        choices=tuple(sorted(e[CHOICES_AXIS] for e in extents if CHOICES_AXIS in e)),
        cut=sum(sample.is_cut for sample in prepared),
        labelled=chosen if task.modality == "image" and labelled else labelled,
    )


def _as_usage(error: StageError, data: DataSource) -> RecipeError:
    """Data that was named on the command line and cannot be used is a mistake of usage."""
    named = data.spec.source
    where = f"{named}: {error.where}" if error.where else named
    if error.where.startswith(
        f"{Path(named).name}:"
    ):  # `folder/file.csv:12`, and not the file twice
        where = f"{named}{error.where.removeprefix(Path(named).name)}"
    return RecipeError(error.message, where=where, hint=error.hint)


def _one_sentence(error: StageError) -> str:
    return f"{error.where}: {error.message}" if error.where else error.message
