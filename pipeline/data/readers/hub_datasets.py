"""`datasets:`: a folder that the `datasets` library reads, local or a snapshot from the hub.

Rows are streamed, so that nothing is converted and nothing is left in a cache. Images stay encoded:
they are decoded when they are chosen, and in one place for all kinds of sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.data.rows import ClassValue, Row, listed, missing_column
from pipeline.errors import EnvironmentMissing, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.rows import Request

SAVED_FILES = ("dataset_dict.json", "state.json")
"""One of these is in a folder that `save_to_disk` wrote."""


def read_dataset(request: Request) -> Iterator[Row]:
    """A row for each row of the split; classes come with their names.

    Raises:
        StageError: when the folder cannot be read, or the subset, the split or a column is not
            there.
        EnvironmentMissing: when `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as err:
        raise EnvironmentMissing(
            f"`datasets:` sources need the package `datasets`: {err}",
            hint="pip install 'convert-pipeline[data]'",
        ) from err
    try:
        loaded = _load(datasets, request)
        data = _pick_split(loaded, request)
        features = data.features or _guess_features(data)
        for column in request.columns:
            if column not in features:
                raise missing_column(column, features, request.source)
        for column in request.columns:
            if isinstance(features[column], datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        data = data.select_columns(list(request.columns))
        for number, values in enumerate(data, start=1):
            yield Row(
                f"{request.source}: row {number}",
                {name: _named(datasets, features[name], value) for name, value in values.items()},
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as err:
        # The library wraps what its readers raise, so the cause is where the message is.
        raise StageError(
            f"the data set cannot be read: {err.__cause__ or err}", where=request.source
        ) from err


def _load(datasets: Any, request: Request) -> Any:
    root = str(request.root)
    if any((request.root / name).is_file() for name in SAVED_FILES):
        if request.subset is not None:
            raise StageError(
                f"a saved data set has no subsets, and `subset` is `{request.subset}`",
                where=request.source,
                hint="leave `subset` out, or name the subset's own folder",
            )
        return datasets.load_from_disk(root)
    builder = datasets.load_dataset_builder(
        root, name=request.subset, cache_dir=str(request.scratch)
    )
    # The data set's card may name files; only those that the key knows may be read.
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not file.startswith(f"{root}/"):
                raise StageError(
                    f"the data set's card names a file outside it: `{file}`",
                    where=request.source,
                    hint="put the file into the folder of the data set, or leave it out of the card",
                )
    return builder.as_streaming_dataset()


def _pick_split(loaded: Any, request: Request) -> Any:
    """The split that is asked for, or the only one."""
    if not isinstance(loaded, dict):  # saved without splits
        if request.split is not None:
            raise StageError(
                f"the data set has no splits, and `split` is `{request.split}`",
                where=request.source,
                hint="leave `split` out",
            )
        return loaded
    names = list(loaded)
    if request.split is None and len(names) == 1:
        return loaded[names[0]]
    if request.split not in names:
        asked = "no `split` is given" if request.split is None else f"no split `{request.split}`"
        raise StageError(
            f"the data set has {len(names)} splits, and {asked}"
            if request.split is None
            else f"the data set has {asked}",
            where=request.source,
            hint=f"write `split:` with one of: {listed(names)}",
        )
    return loaded[request.split]


def _guess_features(data: Any) -> Any:
    """Streamed text files have no declared columns: those of the first row are there."""
    return dict.fromkeys(next(iter(data), {}))


def _named(datasets: Any, feature: Any, value: object) -> object:
    """Classes with their names; what the library calls class -1 is no label."""
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return None if value == -1 else ClassValue(value, feature.names[value])
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel) and isinstance(value, list):
        return [_named(datasets, inner, item) for item in value]
    return value
