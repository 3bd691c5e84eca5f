"""Images, through the checkpoint's own image processor, with at most one class as the label."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.image_size import RGB_CHANNELS, image_size
from pipeline.data.prepare.base import Prepared, describe
from pipeline.data.sample_set import InputSpec
from pipeline.errors import EnvironmentMissing, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL import Image

    from pipeline.data.prepare.base import Setting
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import Tensor

PIXELS = "pixel_values"
THUMBNAIL_PIXELS = 96
"""Longer side of the pictures in the report."""
DEEP_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits begin so: `I`, `I;16`, `F`."""


class ImagePreparation:
    """Images to float32 (channels, height, width), all of one size.

    The processor's PIL backend is used, whether torchvision is installed or not: the two differ in
    how they resize, and the samples of a recipe must not depend on what else is installed.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._size = image_size(setting.checkpoint)
        self._processor = load_processor(setting.checkpoint)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """One input without named axes."""
        return {PIXELS: InputSpec(dtype="float32", axes=(None, None, None))}

    @property
    def notes(self) -> Mapping[str, str | None]:
        """The class of the image processor."""
        return {"image_processor": type(self._processor).__name__}

    def prepare(self, row: Row) -> Prepared:
        """The pixels of the row's image, and its class."""
        fields = self._setting.fields
        assert fields.image is not None
        picture, name = self._open(row, fields.image)
        classes = self._setting.classes
        return Prepared(
            tensors={PIXELS: self._pixels(picture, row, name)},
            text=name,
            label=classes.read(row, fields.label) if classes and fields.label else None,
            picture=_shrink(picture),
        )

    def _pixels(self, picture: Image.Image, row: Row, name: str) -> Tensor:
        try:
            made = self._processor(picture, return_tensors="np")[PIXELS]
        except (ValueError, TypeError, KeyError) as err:
            raise StageError(
                f"the checkpoint's image processor refuses `{name}`: {err}", where=row.where
            ) from err
        pixels: Tensor = np.asarray(made, dtype=np.float32)[0]
        if pixels.shape != self._size:
            raise StageError(
                f"the image processor makes {list(pixels.shape)} of `{name}` "
                f"({picture.width} x {picture.height} pixels), and the checkpoint's other images "
                f"are {list(self._size)}: channels, height, width",
                where=row.where,
                hint="all samples must have one size: let `preprocessor_config.json` resize to "
                "`height` and `width`, or crop (`do_center_crop`, `crop_size`)",
            )
        return pixels

    def _open(self, row: Row, column: str) -> tuple[Image.Image, str]:
        """The image in a column, as the model's channels want it, and its name."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        value, name = row.values[column], row.where
        if isinstance(value, dict):  # as the library `datasets` keeps it
            value = value.get("bytes") or value.get("path")
        source: Any
        match value:
            case Image.Image():
                source = value
            case bytes() if value:
                source = io.BytesIO(value)
            case str() if value:
                source = self._find(value, row)
                name = source.relative_to(self._root).as_posix()
            case _:
                raise StageError(
                    f"column `{column}` holds {describe(value)}, an image is needed: its path, or "
                    "its bytes",
                    where=row.where,
                )
        try:
            with warnings.catch_warnings():
                # From a size on that only attacks and satellites have, pillow raises by itself.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = source if isinstance(source, Image.Image) else Image.open(source)
                _require_8_bits(opened, row, name)
                # A camera's picture is turned by a note beside the pixels, as transformers does.
                turned = ImageOps.exif_transpose(opened)
                return turned.convert("RGB" if self._size[0] == RGB_CHANNELS else "L"), name
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
            # Pillow's own words for it name a file of ours.
            is_unknown = isinstance(err, UnidentifiedImageError)
            reason = "its content is of no known kind" if is_unknown else err
            raise StageError(
                f"the image `{name}` cannot be decoded: {reason}",
                where=row.where,
                hint="save it again as PNG or JPEG, or leave it out",
            ) from err

    @property
    def _root(self) -> Path:
        assert self._setting.data is not None
        return self._setting.data

    def _find(self, name: str, row: Row) -> Path:
        """The file of this name below the source's own directory."""
        # The library `datasets` gives whole paths; those below the directory are as good.
        path = self._root / name
        if not path.is_relative_to(self._root) or ".." in path.parts:
            raise StageError(
                f"the image's path `{name}` leads out of the folder of the data",
                where=row.where,
                hint="give paths relative to the file that names them",
            )
        if not path.is_file():
            raise StageError(
                f"there is no image `{name}`",
                where=row.where,
                hint="paths are relative to the file that names them; name the column in the "
                f"recipe, so that images are looked for: `image: {self._setting.fields.image}`",
            )
        return path


def _require_8_bits(picture: Image.Image, row: Row, name: str) -> None:
    """Pillow would make white of all values above 255, and nobody would see that."""
    if picture.mode.startswith(DEEP_MODES):
        raise StageError(
            f"the image `{name}` has more than 8 bits a channel (pillow's mode `{picture.mode}`), "
            "and there is no one way to make 8 of them",
            where=row.where,
            hint="save it with 8 bits a channel, scaled as the model was trained, or leave it out",
        )


def _shrink(picture: Image.Image) -> Image.Image:
    """A copy for the report; whole photographs of all samples would fill the memory."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return small


def load_processor(directory: Path) -> Any:
    """The image processor of a checkpoint, with the PIL backend.

    Raises:
        EnvironmentMissing: pillow is not installed.
        StageError: its files are damaged, or name none that transformers knows.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as err:
        raise EnvironmentMissing(
            f"images need the package `pillow`: {err}",
            hint="pip install 'convert-pipeline[vision]'",
        ) from err
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            directory, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, TypeError) as err:
        raise StageError(
            f"the checkpoint's image processor cannot be loaded: {err}",
            where="preprocessor_config.json",
        ) from err
