"""Folders that OpenVINO GenAI runs: a stateful IR with its tokenizer as IR too.

The graph's cache becomes state of the model, as `openvino_genai.LLMPipeline` and `WhisperPipeline` want it.
OpenVINO does the conversion, so it must be installed; what it made generates text before it is delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.consumer import has_package, try_in_consumer
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import GRAPH_FILE, copy_companions, read_graphs, require_tokenizer
from pipeline.bundle.openvino_speech import prepare_speech
from pipeline.bundle.placing import placed_whole
from pipeline.bundle.written import Export, TriedModel
from pipeline.errors import ArtifactError, EnvironmentMissing, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bundle.graphs import GraphTarget

MODEL_FILE: Final = "openvino_model.xml"
ENCODER_FILE: Final = "openvino_encoder_model.xml"
PACKAGES: Final = ("openvino", "openvino_genai", "openvino_tokenizers")


def export_openvino(
    artifact: Path, directory: Path, *, targets: Sequence[str] = (), replace: bool = False
) -> Export[TriedModel]:
    """Convert each decoder of an artifact, or its Whisper, and generate text with the result.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        targets: Which; empty for all that OpenVINO can read. What it cannot is named in the notes.
        replace: What was written there earlier gives way.

    Raises:
        EnvironmentMissing: OpenVINO is not installed.
        RecipeError: the artifact failed, there is no such target, it is of another task, it has no
            tokenizer, or its settings of generation contradict.
        ArtifactError: the artifact is damaged, or OpenVINO cannot read a target that was named, or
            any, or generates other tokens.
    """
    with placed_whole(
        directory,
        replace=replace,
        is_ours=_is_ours,
        what="model of OpenVINO",
    ) as draft:
        source = read_graphs(artifact, targets, no_pairs="")
        if not source.task.has_cache:
            raise RecipeError(
                f"`{source.title}` is of task `{source.task.name}`, and this is for `text-generation` and "
                "for Whisper"
            )
        if source.task.parts and source.task.modality != "audio":
            raise RecipeError(
                f"`{source.title}` is an encoder with a decoder, and of these OpenVINO GenAI runs Whisper "
                "only",
                hint="export-optimum and export-transformersjs write it",
            )
        missing = [name for name in PACKAGES if not has_package(name)]
        if missing:
            raise EnvironmentMissing(
                f"OpenVINO makes these files, and `{missing[0]}` is not installed",
                hint="pip install 'convert-pipeline[openvino]'",
            )
        models, notes = [], list(source.left_out)
        for target in source.targets:
            try:
                model, told = _convert(target, draft / target.name)
                models.append(model)
                notes += told
            except ArtifactError as error:
                if targets or len(source.targets) == 1:
                    raise
                notes.append(f"{target.name} is left out: {error.message}")
        if not models:
            raise ArtifactError(f"nothing could be converted: {'; '.join(notes)}")
    return Export(
        directory=directory, artifact=source.title, models=tuple(models), notes=tuple(notes)
    )


def _is_ours(child: Path) -> bool:
    return (child / MODEL_FILE).is_file() or (child / ENCODER_FILE).is_file()


def _convert(target: GraphTarget, folder: Path) -> tuple[TriedModel, list[str]]:
    """What came of a target, and what its users must know."""
    import shutil

    if target.parts:
        module = "pipeline.bundle.openvino_speech_work"
        question, notes = prepare_speech(target, folder)
    else:
        module, notes = "pipeline.bundle.openvino_work", []
        question = _prepare_text(target, folder)
    try:
        answer = try_in_consumer(module, question, what="OpenVINO", where=target.name)
    except ArtifactError:
        shutil.rmtree(folder)
        raise
    model = TriedModel(
        target=target.name, precision=target.declaration.precision, trial=answer.told
    )
    return model, notes


def _prepare_text(target: GraphTarget, folder: Path) -> dict[str, Any]:
    """Write what lies beside a decoder, and ask for the rest."""
    require_tokenizer(target, "OpenVINO GenAI")
    settings = read_generation_settings(target)
    copy_companions(target, folder)
    return {
        "graph": str(target.folder / GRAPH_FILE),
        "folder": str(folder),
        "vocabulary": settings.vocabulary,
        "positions": settings.positions,
        "stops": list(settings.stops),
        "pad": settings.pad,
    }
