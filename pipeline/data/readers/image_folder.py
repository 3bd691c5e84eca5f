"""A folder of images: `<label>/<file>`, or files without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.image_files import find_images
from pipeline.data.rows import Row, missing_column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.rows import Request

IMAGE_COLUMN = "image"
LABEL_COLUMN = "label"


def read_image_folder(request: Request) -> Iterator[Row]:
    """A row for each image, by name: `image` is its path, `label` the name of its folder.

    Raises:
        StageError: when another column is asked for, or a label and the images lie in no folders.
    """
    for name in find_images(request.root):
        values = {IMAGE_COLUMN: name}
        if "/" in name:
            values[LABEL_COLUMN] = name.split("/")[0]
        for column in request.columns:
            if column not in values:
                raise missing_column(column, values, name)
        yield Row(name, values)
