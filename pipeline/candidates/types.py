"""A candidate as the plan knows it: its files with their digests, and what its graph says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.candidates.layout import require_inside
from pipeline.candidates.names import quoted
from pipeline.errors import ArtifactError, RecipeError
from pipeline.source.files import SourceFile, link_files, require_untouched
from pipeline.source.selection import companion_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.candidates.layout import Place
    from pipeline.digest_memory import DigestMemory
    from pipeline.graph.model_facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that is checked, not made.

    Attributes:
        place: Where it was found.
        facts: What its file says of itself.
        files: The model file and its external data, by name.
        companions: Its tokenizer and configuration files, by name relative to their folder.
        artifact: The artifact of ours that it is from, verified; empty for all others.
        engines: Engines that lie beside it in that artifact, by name.
    """

    place: Place
    facts: ModelFacts
    files: Mapping[str, SourceFile]
    companions: Mapping[str, SourceFile]
    artifact: str = ""
    engines: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the model file."""
        return self.place.model.name

    def group(self, kind: str) -> Mapping[str, SourceFile]:
        """Its `model` files or its `companions`."""
        return self.files if kind == "model" else self.companions

    def materialise(self, kind: str, directory: Path) -> None:
        """Make a directory that shows the files of a kind, and nothing else, as links to them."""
        link_files(self.group(kind), directory)

    def require_unchanged(self) -> None:
        """Check that no file was touched since its digest was taken.

        Raises:
            ArtifactError: when one was.
        """
        for files in (self.files, self.companions):
            require_untouched(
                files, root=self.place.model.parent, what="candidate", doing="checked"
            )


def read_files(
    place: Place, facts: ModelFacts, memory: DigestMemory
) -> tuple[dict[str, SourceFile], dict[str, SourceFile]]:
    """The files of a candidate and their digests: the model's own, and its companions.

    External data must be a plain file beside the model. Names are looked at before any is opened.

    Raises:
        ArtifactError: external data is missing, elsewhere, or no plain file.
        RecipeError: a file cannot be read.
    """
    folder = place.model.parent
    names = [place.model.name]
    for external in facts.external_files:
        name = external.location
        if not name or name in {".", ".."} or any(mark in name for mark in ("/", "\\", "\0")):
            raise ArtifactError(
                f"weights are at {quoted(name)}, which is no file beside the model",
                where=str(place.model),
                hint="save the model again with its weights in one file beside it",
            )
        if not os.path.lexists(folder / name):
            raise ArtifactError(
                f"the file {quoted(name)} with weights of the model is missing",
                where=str(place.model),
                hint="copy it beside the model",
            )
        names.append(name)
    try:
        files = {name: _take(folder / name, folder, memory) for name in dict.fromkeys(names)}
        companions: dict[str, SourceFile] = {}
        if place.companions is not None:
            root = place.companions
            companions = {name: _take(root / name, root, memory) for name in companion_names(root)}
    except OSError as error:
        raise RecipeError(
            f"`{error.filename}` cannot be read: {error.strerror}", where=str(folder)
        ) from error
    return files, companions


def _take(path: Path, root: Path, memory: DigestMemory) -> SourceFile:
    real = require_inside(path, root)
    if not real.is_file():
        raise ArtifactError(f"{quoted(path.name)} is not a plain file", where=str(root))
    return SourceFile.of(real, memory)
