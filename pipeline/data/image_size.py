"""The size of the images that a checkpoint's processor makes, read from its JSON files.

The export needs it without the seconds that `transformers.AutoImageProcessor` takes to import. The
rules are those of `transformers.image_processing_backends` and of ConvNeXt's own processor
(transformers 5.23); the tests compare them with the real processors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.data.json_files import read_json_object
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path

PROCESSOR_FILE = "preprocessor_config.json"
NESTED_PROCESSOR_FILE = "processor_config.json"
"""Holds the image processor's settings under `image_processor` in newer checkpoints."""

RGB_CHANNELS = 3


def image_size(directory: Path) -> tuple[int, int, int]:
    """(channels, height, width) of the `pixel_values` of a checkpoint.

    What its processor produces decides, not the size it was trained with: DINOv2 was trained on
    518 pixels and is fed 224. `image_size` of `config.json` counts where the processor keeps the
    size of the image or is silent.

    Args:
        directory: Holds `config.json` and, for most, `preprocessor_config.json`.

    Raises:
        StageError: when neither file says a size, or one is not a JSON object.
    """
    config = read_json_object(directory / "config.json")
    settings = read_processor(directory)
    size = _produced_size(settings) or _pair(config.get("image_size"))
    if size is None:
        raise StageError(
            "the checkpoint does not say how large its images are: there is neither a fixed "
            f"`size` in `{PROCESSOR_FILE}` nor an `image_size` in `config.json`",
            hint=f'write `"size": {{"height": 224, "width": 224}}` into `{PROCESSOR_FILE}`',
        )
    channels = config.get("num_channels")
    return channels if isinstance(channels, int) else RGB_CHANNELS, *size


def read_processor(directory: Path) -> dict[str, Any]:
    """The settings of a checkpoint's image processor; empty when it has none.

    Raises:
        StageError: when a file is not a JSON object.
    """
    nested = read_json_object(directory / NESTED_PROCESSOR_FILE).get("image_processor")
    return nested if isinstance(nested, dict) else read_json_object(directory / PROCESSOR_FILE)


def _produced_size(settings: dict[str, Any]) -> tuple[int, int] | None:
    """What the last step that fixes a size makes of it: padding, cropping, resizing."""
    if settings.get("do_pad") and (size := _pair(settings.get("pad_size"))):
        return size
    if settings.get("do_center_crop") and (size := _pair(settings.get("crop_size"))):
        return size
    # ConvNeXt's crops what it has resized to `size / crop_pct`, and so makes `size` of it.
    return _pair(settings.get("size")) if settings.get("do_resize", True) else None


def _pair(size: object) -> tuple[int, int] | None:
    """(height, width) of the ways to write a size; None when it does not fix both.

    A shortest edge alone fixes both for square images only. Most checkpoints that have one crop
    after it, and for the others there is no better answer.
    """
    if isinstance(size, dict):
        if isinstance(edge := size.get("shortest_edge"), int) and "longest_edge" not in size:
            return edge, edge
        size = [size.get("height"), size.get("width")]
    if isinstance(size, int):
        return size, size
    match size:
        case [int(height), int(width)]:
            return height, width
    return None
