"""A checkpoint in a directory of this machine."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, RecipeError
from pipeline.source.selection import MODULE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.source.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory; all that is known of its files is in them. Implements `Location`."""

    root: Path
    revision: str = ""
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What messages call the place."""
        return str(self.root)

    def names(self) -> frozenset[str]:
        """Names of the files in it and in the folders of modules."""
        try:
            return frozenset(self._files())
        except OSError as error:
            raise ArtifactError(
                f"the checkpoint cannot be listed: {error.strerror}", where=str(error.filename)
            ) from error

    def _files(self) -> Iterator[str]:
        for entry in self.root.iterdir():
            if entry.is_file():
                yield entry.name
            elif fnmatch.fnmatchcase(entry.name, MODULE_FOLDER) and entry.is_dir():
                for inner in entry.iterdir():
                    if inner.is_file():
                        yield f"{entry.name}/{inner.name}"

    def bring(self, names: Sequence[str]) -> None:
        """Nothing to do: they are here."""

    def promised(self, name: str) -> tuple[int, str] | None:  # noqa: ARG002
        """None: they are here."""
        return None

    def check(self, name: str, sha256: str) -> None:
        """Nothing to hold it against."""


def locate_directory(spec: str, request: Request) -> Directory:
    """The directory that `spec` names, relative to the recipe's.

    Raises:
        RecipeError: there is none.
    """
    root = (request.directory / Path(spec).expanduser()).resolve()
    return checked_directory(root, request)


def checked_directory(root: Path, request: Request, *, revision: str = "") -> Directory:
    """A directory as a checkpoint's place.

    Raises:
        RecipeError: there is none, or the recipe asks for a revision of it.
    """
    if request.revision:
        raise RecipeError(
            f"only a checkpoint on a hub has revisions, and `{request.spec}` is none",
            where=request.where_revision,
            hint="remove `revision`, or write `source: hub:ORG/NAME`",
        )
    if not root.is_dir():
        raise RecipeError(
            f"there is no checkpoint directory `{request.spec}`"
            + (f" (looked at {root})" if str(root) != request.spec else ""),
            where=request.where,
            hint="give a directory that holds config.json and *.safetensors, relative to the "
            "recipe, or `package:NAME/path`, or `hub:ORG/NAME`",
        )
    return Directory(root=root, revision=revision)
