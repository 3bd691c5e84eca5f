"""What an artifact says that a model repository is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.bundle.verified import require_passed
from pipeline.engines.facts_file import (
    EngineFacts,
    facts_path,
    read_engine_facts,
    require_engine_of_facts,
)
from pipeline.engines.header import read_engine_header
from pipeline.errors import ArtifactError, RecipeError
from pipeline.foreign_models import read_model
from pipeline.publish import read_manifest
from pipeline.report import load_report
from pipeline.runtimes.ort_providers import Provider, ProviderOptions
from pipeline.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bench.types import BenchmarkResult
    from pipeline.graph.model_facts import ModelFacts
    from pipeline.tasks import Task

MODEL_FILE = "model.onnx"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Model(_Part):
    task: str


class Range(_Part):
    """Smallest, usual and largest size of an axis."""

    min: int
    opt: int
    max: int


class _Shapes(_Part):
    batch: Range
    sequence: Range | None = None
    num_choices: Range | None = None


class _Samples(_Part):
    text_pair: str | None = None


class _Data(_Part):
    evaluation: _Samples | None = None


class _Benchmark(_Part):
    threads: int | None = None


class TargetDeclaration(_Part):
    """One target, as the recipe declares it; the provider is ONNX Runtime's."""

    name: str
    runtime: str
    precision: str = ""
    provider: Provider = "cpu"
    provider_options: ProviderOptions | None = None


class _Recipe(_Part):
    model: _Model
    shapes: _Shapes
    data: _Data = _Data()
    benchmark: _Benchmark | None = None
    targets: tuple[TargetDeclaration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """One engine of full TensorRT, which Triton's backend can read."""

    path: Path
    facts: EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSource:
    """One target of an artifact.

    Attributes:
        folder: Where its files are.
        graph: What is in its ONNX graph.
        benchmark: What was measured of it; None when nothing was.
        engines: Of full TensorRT.
        has_rtx_engines: There are engines of TensorRT-RTX.
    """

    declaration: TargetDeclaration
    folder: Path
    graph: ModelFacts
    benchmark: BenchmarkResult | None
    engines: tuple[EngineFile, ...]
    has_rtx_engines: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSource:
    """A verified artifact that passed.

    Attributes:
        has_pairs: Samples are of two texts.
        threads: Of ONNX Runtime, as they were when it was measured; None: its own choice.
    """

    directory: Path
    name: str
    version: str
    task: Task
    batch: Range
    sizes: dict[str, Range]
    has_pairs: bool
    threads: int | None
    targets: tuple[TargetSource, ...]


def read_artifact(directory: Path, targets: Sequence[str] = ()) -> ArtifactSource:
    """Verify an artifact, and read what is needed of it.

    Args:
        directory: Of the artifact.
        targets: Those to read; empty for all.

    Raises:
        RecipeError: it failed its gates, or has no such target.
        ArtifactError: it is damaged, or from another version of convert.
    """
    facts = require_passed(directory)
    recipe = _read_recipe(read_manifest(directory), directory)
    known = {target.name: target for target in recipe.targets}
    for name in targets:
        if name not in known:
            raise RecipeError(f"there is no target `{name}`, only {', '.join(known)}")
    report = load_report(directory / "report.json")
    measured = {target.name: target.benchmark for target in report.targets}
    task = find_task(recipe.model.task)
    if task.has_cache:
        raise RecipeError(
            f"models of task `{task.name}` cannot be served by this: Triton would run one step, and "
            "keeps no cache between requests",
            hint="`convert export-optimum` and `export-transformersjs` hand it over to what runs it"
            if task.parts
            else "`convert export-genai`, `export-openvino` and `export-vllm` hand decoders over to "
            "what serves them",
        )
    wanted = [known[name] for name in targets] or list(recipe.targets)
    shapes = recipe.shapes
    named = {"sequence": shapes.sequence, "num_choices": shapes.num_choices}
    return ArtifactSource(
        directory=directory,
        name=facts.name,
        version=facts.version,
        task=task,
        batch=shapes.batch,
        sizes={axis: sizes for axis, sizes in named.items() if sizes is not None},
        has_pairs=recipe.data.evaluation is not None
        and recipe.data.evaluation.text_pair is not None,
        threads=recipe.benchmark.threads if recipe.benchmark else None,
        targets=tuple(
            _read_target(directory, target, measured.get(target.name)) for target in wanted
        ),
    )


def _read_recipe(manifest: dict[str, Any], directory: Path) -> _Recipe:
    try:
        return _Recipe.model_validate(manifest.get("recipe"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"manifest.json: recipe: `{key}`: {first['msg']}", where=str(directory)
        ) from error


def _read_target(
    directory: Path, declaration: TargetDeclaration, benchmark: BenchmarkResult | None
) -> TargetSource:
    folder = directory / declaration.name
    graph = folder / MODEL_FILE
    if not graph.is_file():
        raise ArtifactError(
            f"target `{declaration.name}` has no {MODEL_FILE}", where=str(directory)
        )
    engines, has_rtx_engines = [], False
    for path in sorted(folder.glob("*.engine")):
        if read_engine_header(path).kind == "tensorrt-rtx":
            has_rtx_engines = True
            continue
        if not facts_path(path).is_file():
            raise ArtifactError(
                f"nothing lies beside {path.name} that says its shapes", where=str(folder)
            )
        facts = read_engine_facts(facts_path(path))
        require_engine_of_facts(facts, path)
        engines.append(EngineFile(path=path, facts=facts))
    return TargetSource(
        declaration=declaration,
        folder=folder,
        graph=read_model(graph),
        benchmark=benchmark,
        engines=tuple(engines),
        has_rtx_engines=has_rtx_engines,
    )
