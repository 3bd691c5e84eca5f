"""`.parquet`, read in batches of rows and only the columns that are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.rows import Row, missing_column
from pipeline.data.tables import find_table
from pipeline.errors import EnvironmentMissing, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.rows import Request

SUFFIXES = (".parquet",)
BATCH_ROWS = 256
"""Small, because a row may hold an image."""


def read_parquet(request: Request) -> Iterator[Row]:
    """A row for each row; values are Python's own: texts, numbers, lists, bytes, dicts.

    Raises:
        StageError: when the file is not Parquet, or a column is not there.
        EnvironmentMissing: when pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as err:
        raise EnvironmentMissing(
            f"`.parquet` files need the package `pyarrow`: {err}",
            hint="pip install 'convert-pipeline[data]'",
        ) from err
    path = find_table(request.root, SUFFIXES)
    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            for column in request.columns:
                if column not in present:
                    raise missing_column(column, present, path.name)
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(request.columns)):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}: row {number}", values)
    except (pyarrow.ArrowException, OSError) as err:
        raise StageError(f"the file cannot be read as Parquet: {err}", where=path.name) from err
