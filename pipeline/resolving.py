"""A loaded recipe -> its plan: the checkpoint and the data are found, and their digests taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.candidates import Candidate, find_place, read_files
from pipeline.checks.openvino_serving import DRAFT_NAME
from pipeline.data_source import resolve_data
from pipeline.engines.header import read_engine_header
from pipeline.errors import ArtifactError, DigestMismatch, RecipeError
from pipeline.foreign_models import read_model
from pipeline.planning import build_plan
from pipeline.publish import MANIFEST_FILE, verify_artifact
from pipeline.source import resolve_source
from pipeline.source.files import SourceFile
from pipeline.stages.base import MODEL_FILE
from pipeline.targets.existing import ExistingTarget
from pipeline.targets.tensorrt import TensorRTTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.candidates import Place
    from pipeline.digest_memory import DigestMemory
    from pipeline.planning import Plan
    from pipeline.recipe import LoadedRecipe
    from pipeline.targets.tensorrt import TimingCache


ENGINE_SUFFIX = ".engine"


def resolve_plan(
    loaded: LoadedRecipe, memory: DigestMemory, *, note: Callable[[str], None]
) -> Plan:
    """Find what a recipe names, and lay out its plan.

    Args:
        loaded: The recipe with its positions.
        memory: Saves hashing files that have not changed; the caller saves it.
        note: Is told what was decided and should be known, such as which cached commit is used.

    Raises:
        RecipeError: what the recipe asks for is impossible.
        EnvironmentMissing: a package is not installed, or a hub cannot be reached.
        ArtifactError: the checkpoint is damaged.
    """
    source = resolve_source(
        loaded.recipe.model.source,
        recipe_directory=loaded.directory("model", "source"),
        memory=memory,
        revision=loaded.recipe.model.revision,
        where=loaded.where("model", "source"),
        where_revision=loaded.where("model", "revision"),
        note=note,
    )
    data = {
        use: resolve_data(
            spec,
            directory=loaded.directory("data", use, "source"),
            memory=memory,
            where=loaded.where("data", use, "source"),
        )
        for use, spec in loaded.recipe.data.specs().items()
    }
    candidates = {
        target.name: resolve_candidate(
            target.model,
            target.file,
            directory=loaded.directory("targets", place, "model"),
            memory=memory,
            where=loaded.where("targets", place, "model"),
            said_by="`file`",
        )
        for place, target in enumerate(loaded.recipe.targets)
        if isinstance(target, ExistingTarget)
    }
    serving = loaded.recipe.gates.checks.openvino_serving
    if serving is not None and serving.draft is not None:
        place_of_draft = ("gates", "checks", "openvino_serving", "draft")
        candidates[DRAFT_NAME] = resolve_candidate(
            serving.draft,
            None,
            directory=loaded.directory(*place_of_draft),
            memory=memory,
            where=loaded.where(*place_of_draft),
            said_by="its path in `draft`",
        )
    timing_caches = {
        target.name: resolve_timing_cache(
            target.timing_cache,
            directory=loaded.directory("targets", place, "timing_cache", "file"),
            memory=memory,
            where=loaded.where("targets", place, "timing_cache"),
        )
        for place, target in enumerate(loaded.recipe.targets)
        if isinstance(target, TensorRTTarget) and target.timing_cache is not None
    }
    return build_plan(
        loaded.recipe,
        source,
        data,
        loaded.where,
        candidates=candidates,
        timing_caches=timing_caches,
    )


def resolve_timing_cache(
    asked: TimingCache, *, directory: Path, memory: DigestMemory, where: str
) -> SourceFile:
    """Find the timings of an earlier build, and hold them against the digest in the recipe.

    Raises:
        RecipeError: there is no such file.
        DigestMismatch: it is another one.
    """
    path = (directory / Path(asked.file).expanduser()).resolve()
    if not path.is_file():
        raise RecipeError(f"there is no file `{asked.file}`", where=where)
    file = SourceFile.of(path, memory)
    if file.sha256 != asked.sha256:
        raise DigestMismatch(
            f"the digest of `{asked.file}` is {file.sha256}, and the recipe says {asked.sha256}",
            where=where,
            hint="write the digest of the file that is meant: with other timings TensorRT may "
            "choose other kernels",
        )
    return file


def resolve_candidate(
    model: str,
    file: str | None,
    *,
    directory: Path,
    memory: DigestMemory,
    where: str,
    said_by: str = "--file",
) -> Candidate:
    """Find a model that somebody else made, read what it says of itself, and take its digests.

    What lies in an artifact of ours must be what its manifest says.

    Args:
        model: An `.onnx` file, an engine of an artifact of ours, or a folder.
        file: Which of the folder's models.
        directory: Where relative paths start.
        memory: Saves hashing files that have not changed.
        where: Position of the model in the recipe, for messages.
        said_by: What says which file, for messages.

    Raises:
        RecipeError: there is none, or more than one; or it is an engine and nothing else.
        ArtifactError: it is damaged, or an artifact that is not what its manifest says.
    """
    place = find_place(directory / Path(model).expanduser(), file, where=where, said_by=said_by)
    artifact = _verified_artifact(place.model)
    engines: tuple[str, ...] = ()
    if place.model.suffix == ENGINE_SUFFIX:
        place = _beside_engine(place, artifact, where)
    if artifact:
        engines = tuple(sorted(p.name for p in place.model.parent.glob(f"*{ENGINE_SUFFIX}")))
    facts = read_model(place.model)
    files, companions = read_files(place, facts, memory)
    return Candidate(
        place=place,
        facts=facts,
        files=files,
        companions=companions,
        artifact=artifact,
        engines=engines,
    )


def _verified_artifact(model: Path) -> str:
    """The artifact that a model is from; empty when it is from elsewhere.

    Raises:
        ArtifactError: it is not what its manifest says.
    """
    real = model.resolve()
    for folder in (real.parent.parent, real.parent.parent.parent):
        if not (folder / MANIFEST_FILE).is_file():
            continue
        problems = verify_artifact(folder)
        if problems:
            raise ArtifactError(
                f"the artifact is not what its manifest says: {problems[0]}", where=str(folder)
            )
        return str(folder)
    return ""


def _beside_engine(place: Place, artifact: str, where: str) -> Place:
    """The graph that an engine of ours was built from; an engine itself is never loaded.

    Raises:
        RecipeError: it is not from an artifact of ours.
        ArtifactError: its header is damaged.
    """
    header = read_engine_header(place.model)
    graph = place.model.with_name(MODEL_FILE)
    if artifact and graph.is_file():
        return replace(place, model=graph)
    raise RecipeError(
        f"`{place.model.name}` (TensorRT-RTX {header.version} for "
        f"{', '.join(header.compute_capabilities) or 'unknown GPUs'}) was not run, because loading "
        "an engine runs code in it, and no manifest that verifies has its digest",
        where=where,
        hint="check the ONNX graph that it was built from, or an artifact of convert that holds it",
    )
