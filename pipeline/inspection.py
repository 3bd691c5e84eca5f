"""What a path holds: a recipe, an artifact, an ONNX model or an engine.

A model is foreign until proven otherwise, so it is read in a process of its own, with limits on time
and memory. An engine is not loaded: its first 64 bytes are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines.header import EngineHeader, read_engine_header
from pipeline.errors import RecipeError
from pipeline.foreign_models import read_model
from pipeline.hashing import sha256_bytes
from pipeline.listing import ArtifactFacts, find_artifact, is_artifact, path_kind, read_facts
from pipeline.recipe import dump_recipe, load_recipe_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.graph.model_facts import ModelFacts
    from pipeline.hashing import JSON

_ENGINE_MAGIC = (b"vtrt", b"ftrt")
_RECIPE_SUFFIXES = (".yaml", ".yml")
_MODEL_START = bytes([0x08])
"""Tag of `ir_version`, the first field of ModelProto; serialisers write fields in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeInspection:
    """A recipe with all defaults filled in; `digest` is the SHA-256 of its file."""

    path: Path
    recipe: Mapping[str, JSON]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInspection:
    """An artifact, by its manifest; nothing is verified."""

    path: Path
    facts: ArtifactFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInspection:
    """An ONNX model."""

    path: Path
    facts: ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInspection:
    """A TensorRT-RTX engine, by its header."""

    path: Path
    header: EngineHeader


Inspection = RecipeInspection | ArtifactInspection | ModelInspection | EngineInspection


def inspect_path(name: str, output: Path) -> Inspection:
    """Say what a path holds, by its kind.

    Args:
        name: A file, or an artifact as `find_artifact` takes it.
        output: Where artifacts are.

    Raises:
        RecipeError: there is nothing, or it is of no known kind; or a recipe is wrong.
        ArtifactError: it is of a known kind, and damaged.
    """
    path = Path(name)
    kind = path_kind(path)
    if kind != "file":
        if kind == "directory" and not is_artifact(path):
            _refuse_plain_directory(path)
        directory = find_artifact(name, output)
        return ArtifactInspection(path=directory, facts=read_facts(directory))
    start = _read_start(path)
    if path.suffix in _RECIPE_SUFFIXES:
        loaded = load_recipe_file(path)
        return RecipeInspection(
            path=path, recipe=dump_recipe(loaded.recipe), digest=sha256_bytes(loaded.content)
        )
    if path.suffix == ".engine" or start.startswith(_ENGINE_MAGIC):
        return EngineInspection(path=path, header=read_engine_header(path))
    if path.suffix == ".onnx" or start.startswith(_MODEL_START):
        return ModelInspection(path=path, facts=read_model(path))
    raise RecipeError(
        f"`{name}` is no recipe (.yaml), ONNX model (.onnx) or engine (.engine)",
        hint="for an artifact, name its directory",
    )


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise RecipeError(f"`{path}` cannot be read: {error.strerror}") from error


def _refuse_plain_directory(path: Path) -> None:
    """Name the files of a directory that can be looked at, such as those of one target."""
    names = [
        child.name
        for child in sorted(path.iterdir())
        if child.suffix in {".onnx", ".engine", *_RECIPE_SUFFIXES}
    ]
    if names:
        raise RecipeError(
            f"`{path}` is a directory, and no artifact; in it are {', '.join(names[:6])}",
            hint=f"convert inspect {path / names[0]}",
        )
