"""What a path holds: a recipe, an artifact, an ONNX model or an engine.

A model is foreign until proven otherwise, so it is read in a process of its own, with limits on time
and memory. An engine is not loaded: its first 64 bytes are read, and the facts that lie beside it,
which say what its digest must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines.facts_file import (
    EngineFacts,
    facts_path,
    read_engine_facts,
    require_engine_of_facts,
)
from pipeline.engines.header import EngineHeader, read_engine_header
from pipeline.engines.preflight import loading_problem
from pipeline.engines.targets import TARGETS, capability_mask
from pipeline.errors import ArtifactError, RecipeError
from pipeline.foreign_models import read_model
from pipeline.hashing import sha256_bytes
from pipeline.listing import ArtifactFacts, find_artifact, is_artifact, path_kind, read_facts
from pipeline.recipe import dump_recipe, load_recipe_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
class EngineRow:
    """One engine of an artifact.

    Attributes:
        path: Relative to the artifact.
        header: None when the file is no whole engine.
        facts: What its builder wrote of it; None when nothing lies beside it.
        problem: Why the header or the facts cannot be read; empty when they can.
    """

    path: str
    header: EngineHeader | None
    facts: EngineFacts | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInspection:
    """An artifact, by its manifest and what lies beside its engines; nothing is verified."""

    path: Path
    facts: ArtifactFacts
    engines: tuple[EngineRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInspection:
    """An ONNX model."""

    path: Path
    facts: ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInspection:
    """An engine, by its header and by the facts beside it.

    Attributes:
        facts: What its builder wrote of it; None when nothing lies beside it. When there is
            something, the engine's digest was found to be the one that is stated there.
        loading_problem: Why this machine cannot load it; empty when nothing speaks against it.
    """

    path: Path
    header: EngineHeader
    facts: EngineFacts | None
    loading_problem: str


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
        return ArtifactInspection(
            path=directory, facts=read_facts(directory), engines=tuple(_engine_rows(directory))
        )
    start = _read_start(path)
    if path.suffix in _RECIPE_SUFFIXES:
        loaded = load_recipe_file(path)
        return RecipeInspection(
            path=path, recipe=dump_recipe(loaded.recipe), digest=sha256_bytes(loaded.content)
        )
    if path.suffix == ".engine" or start.startswith(_ENGINE_MAGIC):
        return _inspect_engine(path)
    if path.suffix == ".onnx" or start.startswith(_MODEL_START):
        return ModelInspection(path=path, facts=read_model(path))
    raise RecipeError(
        f"`{name}` is no recipe (.yaml), ONNX model (.onnx) or engine (.engine)",
        hint="for an artifact, name its directory",
    )


def _inspect_engine(path: Path) -> EngineInspection:
    header = read_engine_header(path)
    beside = facts_path(path)
    facts = None
    if path_kind(beside) != "nothing":
        facts = read_engine_facts(beside)
        _require_same(header, facts, path)
        require_engine_of_facts(facts, path)
    return EngineInspection(
        path=path, header=header, facts=facts, loading_problem=loading_problem(path, facts)
    )


def _require_same(header: EngineHeader, facts: EngineFacts, path: Path) -> None:
    """Hold header and facts against each other, which needs no reading of a large file.

    Raises:
        ArtifactError: they are of different engines.
    """
    pairs = [("runtime", header.kind, facts.runtime), ("version", header.version, facts.version)]
    if facts.target in TARGETS and header.kind == "tensorrt-rtx":
        stated = f"{capability_mask(facts.target):#x}"
        pairs.append(("target mask", f"{header.capability_mask:#x}", stated))
    for what, found, said in pairs:
        if found != said:
            raise ArtifactError(
                f"the engine's header says {what} {found}, and {facts_path(path).name} says {said}",
                where=path.name,
                hint="the two are not of one build: build the target again",
            )


def _engine_rows(directory: Path) -> Iterator[EngineRow]:
    for path in sorted(directory.rglob("*.engine")):
        header, facts, problem = None, None, ""
        try:
            header = read_engine_header(path)
            if facts_path(path).is_file():
                facts = read_engine_facts(facts_path(path))
                _require_same(header, facts, path)
        except ArtifactError as error:
            problem = error.message
        name = path.relative_to(directory).as_posix()
        yield EngineRow(path=name, header=header, facts=facts, problem=problem)


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
