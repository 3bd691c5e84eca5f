"""Targets of a verified artifact that are ONNX graphs, and what lies beside them, for other programs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.bundle.verified import require_passed
from pipeline.errors import ArtifactError, RecipeError
from pipeline.file_names import CONFIG_FILES, PROCESSOR_FILES, TOKENIZER_FILES
from pipeline.foreign_models import read_model
from pipeline.publish import read_manifest
from pipeline.source.json_files import read_json
from pipeline.tasks import DECODER, find_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.graph.model_facts import ModelFacts
    from pipeline.tasks import Task

GRAPH_FILE: Final = "model.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"
_ONE_GRAPH: Final = "this writes models of one graph"
COMPANIONS: Final = (*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Model(_Part):
    task: str


class Quantization(_Part):
    """How a target was quantised, as far as it matters to who loads it."""

    mode: str
    bits: int | None = None
    block_size: int | None = None
    per_channel: bool = False
    method: str = ""


class Declaration(_Part):
    """One target, as the recipe declares it."""

    name: str
    runtime: str
    precision: str = ""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    quantization: Quantization | None = None
    static_cache: dict[str, int] | None = None


class _Recipe(_Part):
    model: _Model
    targets: tuple[Declaration, ...]


@dataclass(frozen=True, kw_only=True)
class GraphTarget:
    """One target with a graph for ONNX Runtime, or with an encoder and a decoder.

    Attributes:
        folder: Where its files are.
        config: Its `config.json`.
        parts: Names of its two graphs; empty when there is one.
    """

    declaration: Declaration
    folder: Path
    config: dict[str, Any]
    parts: tuple[str, ...] = ()

    @cached_property
    def graph(self) -> ModelFacts:
        """What is in the graph, read in a process of its own when it is first asked for.

        Of an encoder with a decoder it is the decoder's.

        Raises:
            ArtifactError: it cannot be read.
        """
        return read_model(self.graph_file(DECODER if self.parts else ""))

    def graph_file(self, part: str = "") -> Path:
        """The graph, or the graph of a part."""
        return self.folder / part / GRAPH_FILE

    def part(self, name: str) -> GraphTarget:
        """One of its two graphs, as a target of its own."""
        return replace(self, folder=self.folder / name, parts=())

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.declaration.name


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSource:
    """A verified artifact that passed, and its targets with graphs.

    Attributes:
        left_out: A sentence for each target that has none.
    """

    directory: Path
    name: str
    version: str
    task: Task
    targets: tuple[GraphTarget, ...]
    left_out: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"


def read_graphs(
    directory: Path,
    targets: Sequence[str] = (),
    *,
    no_pairs: str = _ONE_GRAPH,
    takes_static: bool = False,
) -> GraphSource:
    """Verify an artifact, and read its targets for ONNX Runtime.

    Args:
        directory: Of the artifact.
        targets: Those to read; empty for all.
        no_pairs: Why encoders with decoders cannot be written, a sentence; empty when they can.
        takes_static: Read decoders with a static cache too, which no engine knows.

    Raises:
        RecipeError: it failed its gates, has no such target, or what was named has no graph for
            ONNX Runtime.
        ArtifactError: it is damaged, or from another version of convert.
    """
    facts = require_passed(directory)
    recipe = _read_recipe(read_manifest(directory), directory)
    task = find_task(recipe.model.task)
    if task.parts and no_pairs:
        raise RecipeError(
            f"`{facts.name}/{facts.version}` is an encoder with a decoder: {no_pairs}",
            hint="export-optimum and export-transformersjs write it",
        )
    known = {target.name: target for target in recipe.targets}
    for name in targets:
        if name not in known:
            raise RecipeError(f"there is no target `{name}`, only {', '.join(known)}")
    found, left_out = [], []
    for declaration in [known[name] for name in targets] or recipe.targets:
        if declaration.static_cache is not None and not takes_static:
            left_out.append(f"{declaration.name}: only convert itself feeds its static cache")
        elif declaration.runtime == "onnxruntime":
            found.append(_read_target(directory, declaration, tuple(task.parts)))
        else:
            left_out.append(f"{declaration.name}: it is for {declaration.runtime}")
    if not found or (targets and left_out):
        raise RecipeError(
            f"nothing of `{facts.name}/{facts.version}` can be written: {'; '.join(left_out)}",
            hint="this takes targets with `runtime: onnxruntime`",
        )
    return GraphSource(
        directory=directory,
        name=facts.name,
        version=facts.version,
        task=task,
        targets=tuple(found),
        left_out=tuple(left_out),
    )


def require_tokenizer(target: GraphTarget, reader: str) -> None:
    """Raises `RecipeError` when there is no `tokenizer.json`, which is what `reader` reads."""
    if (target.folder / TOKENIZER_FILE).is_file():
        return
    others = [name for name in TOKENIZER_FILES if (target.folder / name).is_file()]
    raise RecipeError(
        f"target `{target.name}` has no {TOKENIZER_FILE}, from which {reader} makes its tokenizer"
        + (f" (there are {', '.join(others)})" if others else ""),
        hint="AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT) writes one; then "
        "build again",
    )


def copy_companions(target: GraphTarget, folder: Path) -> None:
    """Copy configuration, tokenizer and processor files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (target.folder / name).is_file():
            shutil.copyfile(target.folder / name, folder / name)


def copy_graph(
    target: GraphTarget, place: Path, *, axes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy a graph, and its weights when they lie in a file of their own.

    Args:
        target: Whose.
        place: The new file. Under another name the weights are `NAME_data`, as Optimum and
            transformers.js call them, and the graph says so.
        axes: Other names for its free axes.

    Raises:
        ArtifactError: weights are not where the graph says.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    graph, external = target.folder / GRAPH_FILE, target.graph.external_files
    for file in external:
        source = (target.folder / file.location).resolve()
        if not source.is_relative_to(target.folder.resolve()) or not source.is_file():
            raise ArtifactError(
                f"its weights are in `{file.location}`, which is not beside it",
                where=f"{target.name}/{GRAPH_FILE}",
            )
    names = {file.location: file.location for file in external}
    if place.name != GRAPH_FILE:
        names = {
            file.location: f"{place.name}_data" + (f"_{number}" if number else "")
            for number, file in enumerate(external)
        }
    if axes or (external and place.name != GRAPH_FILE):
        from pipeline.graph.renaming import rename_outside

        rename_outside(graph, place, files=names, axes=axes)
    else:
        shutil.copyfile(graph, place)
    for old, new in names.items():
        (place.parent / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target.folder / old, place.parent / new)


def _read_recipe(manifest: dict[str, Any], directory: Path) -> _Recipe:
    try:
        return _Recipe.model_validate(manifest.get("recipe"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"manifest.json: recipe: `{key}`: {first['msg']}", where=str(directory)
        ) from error


def _read_target(directory: Path, declaration: Declaration, parts: tuple[str, ...]) -> GraphTarget:
    folder = directory / declaration.name
    if not all((folder / part / GRAPH_FILE).is_file() for part in parts or ("",)):
        expected = " and ".join(f"{part}/{GRAPH_FILE}" for part in parts) or f"one `{GRAPH_FILE}`"
        raise RecipeError(f"target `{declaration.name}` is not {expected}, which this can write")
    return GraphTarget(
        declaration=declaration,
        folder=folder,
        config=read_json(folder / "config.json", f"{declaration.name}/config.json"),
        parts=parts,
    )
