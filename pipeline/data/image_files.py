"""Which files are images, and which are sounds, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


SOUND_SUFFIXES: Final = (".wav", ".wave")


def find_images(directory: Path) -> list[str]:
    """Names of the images below a directory, relative to it, sorted; hidden ones are left out."""
    return _find(directory, IMAGE_SUFFIXES)


def find_sounds(directory: Path) -> list[str]:
    """Names of the WAV files below a directory, as `find_images`."""
    return _find(directory, SOUND_SUFFIXES)


def _find(directory: Path, suffixes: tuple[str, ...]) -> list[str]:
    names = (
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
    )
    return sorted(
        name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)
    )
