"""Which files are images, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find_images(directory: Path) -> list[str]:
    """Names of the images below a directory, relative to it, sorted; hidden ones are left out."""
    names = (
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    return sorted(
        name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)
    )
