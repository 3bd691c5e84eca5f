"""Files with their digests: shown to a stage as links, and watched while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.digest_memory import file_identity
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.digest_memory import DigestMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a checkpoint that is used.

    Attributes:
        path: The file itself, links followed.
        identity: Size, inode and both time stamps when its digest was taken.
    """

    path: Path
    size_bytes: int
    sha256: str
    identity: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path, memory: DigestMemory) -> SourceFile:
        """The file as it is now.

        Args:
            path: The file itself, no link.
            memory: Knows the digests of files that are unchanged.

        Raises:
            ArtifactError: it cannot be read, or is gone.
        """
        try:
            identity = file_identity(path)
            digest = memory.digest(path)
        except OSError as error:
            raise ArtifactError(
                f"`{path.name}` cannot be read: {error.strerror}", where=str(path.parent)
            ) from error
        return cls(path=path, size_bytes=identity[0], sha256=digest, identity=identity)


def link_files(files: Mapping[str, SourceFile], directory: Path) -> None:
    """Make a directory show files under their names, and nothing else, as links to them."""
    for name, file in files.items():
        link = directory / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.path)


def require_untouched(
    files: Mapping[str, SourceFile], *, root: Path | None, what: str, doing: str
) -> None:
    """Check that no file was touched since its digest was taken.

    Args:
        files: By name.
        root: Where they are, for the message.
        what: What they belong to, such as `checkpoint`.
        doing: What was done with it meanwhile, such as `converted`.

    Raises:
        ArtifactError: when one was; what was made from it meanwhile must not be filed.
    """
    for name, file in files.items():
        if not file.path.is_file() or file_identity(file.path) != file.identity:
            raise ArtifactError(
                f"`{name}` changed while it was being {doing}",
                where=str(root),
                hint=f"run again when nothing writes to the {what}",
            )
