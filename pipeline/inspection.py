"""What a path holds: a recipe, an artifact, an ONNX model or an engine.

A model is foreign until proven otherwise, so it is read in a process of its own, with limits on time
and memory. An engine is not loaded: its first 64 bytes are read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.engines.header import EngineHeader, read_engine_header
from pipeline.errors import ArtifactError, RecipeError
from pipeline.graph.model_facts import Answer, ModelFacts
from pipeline.hashing import sha256_bytes
from pipeline.listing import ArtifactFacts, find_artifact, is_artifact, path_kind, read_facts
from pipeline.recipe import dump_recipe, load_recipe_file
from pipeline.run.process import worker_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.hashing import JSON

READ_TIME_S = 60.0
"""For reading a model: about 5 s for 2 GB, protobuf's largest message."""

BASE_MEMORY_BYTES = 1 << 30
"""Address space of Python with onnx; the model comes on top of it, `MEMORY_PER_BYTE` times."""

MEMORY_PER_BYTE = 4
"""A model with its weights is there twice while it is parsed. A message of many tiny parts takes far
more memory than its file has bytes, and is refused."""

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


def read_model(
    path: Path, *, time_s: float = READ_TIME_S, base_memory_bytes: int = BASE_MEMORY_BYTES
) -> ModelFacts:
    """Read a model in a process of its own.

    Args:
        path: The `.onnx` file.
        time_s: After which the process is ended.
        base_memory_bytes: Address space it may use beside what the file's size allows.

    Raises:
        ArtifactError: it is no ONNX model, or reading it takes too long, too much memory, or crashes.
    """
    memory_bytes = base_memory_bytes + MEMORY_PER_BYTE * path.stat().st_size
    environment = worker_environment(threads=1)
    package_parent = str(Path(__file__).resolve().parents[1])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, inherited)))
    module = "pipeline.graph.read_foreign"
    try:
        done = subprocess.run(  # noqa: S603 - our own module; -P: not from the current directory
            [sys.executable, "-P", "-m", module, str(path.resolve()), str(memory_bytes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=time_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"reading the model took longer than {time_s:g} s", where=str(path)
        ) from error
    try:
        answer = Answer.model_validate_json(done.stdout)
    except ValidationError as error:
        raise ArtifactError(
            f"the model cannot be read: its reader {_ending(done.returncode)}",
            where=str(path),
            hint=f"it may use {memory_bytes >> 20:,} MiB; the file is damaged, or made to do harm",
        ) from error
    if answer.facts is None:
        refusal = answer.refusal
        raise ArtifactError(
            refusal.message if refusal else "the model's reader said nothing",
            where=str(path),
            hint=refusal.hint if refusal else "",
        )
    return answer.facts


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code} and no answer"


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
