"""Who vouches for an engine that a stage has built: the manifest of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError
from pipeline.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

ENGINE_FILE = "model.engine"
MANIFEST_FILE = "MANIFEST.json"
"""The store's, in every output: its digest is the name under which the output is kept."""


def vouched_digest(folder: Path) -> str:
    """The SHA-256 that the manifest of a stage's output states for its engine.

    Raises:
        ArtifactError: there is no manifest, it does not verify, or it knows no engine.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"nobody vouches for the engine: its {MANIFEST_FILE} cannot be read: {error.strerror}",
            where=folder.name,
        ) from error
    for entry in Manifest.from_json(text).entries:
        if entry.path == ENGINE_FILE:
            return entry.sha256
    raise ArtifactError(f"{MANIFEST_FILE} knows no {ENGINE_FILE}", where=folder.name)
