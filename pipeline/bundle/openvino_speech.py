"""Folders of Whisper that OpenVINO GenAI loads: what lies beside its models, and how its texts begin.

Source: `src/cpp/src/whisper/` of openvino.genai 2026.4 (`generation_config.cpp`, `whisper.cpp`,
`feature_extractor.cpp`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.asked_rules import (
    not_heeded,
    read_rules,
    read_said,
    rule_names,
    speech_start,
)
from pipeline.bundle.generation_settings import (
    GENERATION_FILE,
    contradiction,
    read_generation_settings,
)
from pipeline.bundle.graphs import copy_companions, require_tokenizer
from pipeline.errors import RecipeError
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.bundle.generation_settings import GenerationSettings
    from pipeline.bundle.graphs import GraphTarget

MODEL_TYPE: Final = "whisper"
DETECTED: Final = -1
"""Among the tokens that a text begins with: the language that is heard."""
_SILENT: Final = "no_timestamps_token_id"
_HEEDED: Final = {
    "suppress_tokens",
    "begin_suppress_tokens",
    "repetition_penalty",
    "min_new_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechStart:
    """How OpenVINO GenAI begins its texts.

    Attributes:
        tokens: The first ones; `DETECTED` where the language goes that is heard.
        languages: Name in `lang_to_id` -> token; empty for a model of one language.
        language: What its users name, as the checkpoint asks for it; None to let it be heard.
        task: The same of the task.
        asked: Those that the checkpoint asks for.
    """

    tokens: tuple[int, ...]
    languages: Mapping[str, int]
    language: str | None
    task: str | None
    asked: tuple[int, ...]


def prepare_speech(target: GraphTarget, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Write what is read beside the models of one target.

    Args:
        target: Of task `automatic-speech-recognition`.
        folder: Where to.

    Returns:
        The question for `pipeline.bundle.openvino_speech_work`, and what users must know.

    Raises:
        RecipeError: it is no Whisper, has no tokenizer or no feature extractor, or its settings of
            generation contradict or lack what GenAI takes.
    """
    from pipeline.data.prepare.sounds import load_extractor

    kind = target.config.get("model_type")
    if kind != MODEL_TYPE:
        raise RecipeError(
            f"target `{target.name}` is `model_type: {kind}`, and of models that listen OpenVINO GenAI runs "
            f"`{MODEL_TYPE}` only as two graphs",
            hint="export-optimum writes others",
        )
    require_tokenizer(target, "OpenVINO GenAI")
    settings, said = read_generation_settings(target), read_said(target)
    start = read_start(said, settings)
    rules = read_rules(said, settings.vocabulary)
    copy_companions(target, folder)
    # Where the file is missing GenAI takes sizes of its own, and older ones lack some.
    load_extractor(target.folder).save_pretrained(folder)
    known = range(settings.vocabulary)
    kept = {
        "suppress_tokens": [token for token in rules.suppress if token in known],
        "begin_suppress_tokens": [token for token in rules.begin_suppress if token in known],
    }
    _write_settings(folder, said, settings, start, kept)
    question = {
        "encoder": str(target.graph_file(ENCODER)),
        "decoder": str(target.graph_file(DECODER)),
        "folder": str(folder),
        "precision": target.declaration.precision,
        "positions": settings.positions,
        "stops": list(settings.stops),
        "pad": settings.pad,
        "start": list(start.tokens),
        "languages": dict(start.languages),
        "language": start.language,
        "task": start.task,
        **kept,
    }
    return question, _notes(target, said, settings, start)


def read_start(said: dict[str, Any], settings: GenerationSettings) -> SpeechStart:
    """What GenAI's texts begin with, when it is told the language and the task that a checkpoint asks for.

    Args:
        said: Of `asked_rules.read_said`.
        settings: Of the same checkpoint.

    Raises:
        RecipeError: it does not say what GenAI would then take from a number of its own.
    """
    assert settings.starts is not None
    silent = said.get(_SILENT)
    if not isinstance(silent, int) or not 0 <= silent < settings.vocabulary:
        raise RecipeError(
            f"{GENERATION_FILE} does not say `{_SILENT}`, which OpenVINO GenAI begins texts with",
            hint="add it to the checkpoint, as those of Whisper have it, then build again",
        )
    asked = speech_start(said, settings.starts, lambda _: [DETECTED])[0]
    languages: dict[str, int] = said.get("lang_to_id") or {}
    tasks: dict[str, int] = said.get("task_to_id") or {}
    if not languages or said.get("is_multilingual") is False:
        return SpeechStart(
            tokens=(settings.starts, silent),
            languages={},
            language=None,
            task=None,
            asked=tuple(asked),
        )
    if "transcribe" not in tasks:
        raise contradiction("there is `lang_to_id` and no `transcribe` in `task_to_id`")
    for name, token in (languages | tasks).items():
        if not 0 <= token < settings.vocabulary:
            raise contradiction(
                f"`{name}` is {token}, and the model's tokens are 0 to {settings.vocabulary - 1}"
            )
    language = next((name for name, token in languages.items() if token in asked), None)
    task = next((name for name, token in tasks.items() if token in asked), None)
    return SpeechStart(
        tokens=(
            settings.starts,
            DETECTED if language is None else languages[language],
            tasks[task or "transcribe"],
            silent,
        ),
        languages=languages,
        language=language,
        task=task,
        asked=tuple(asked),
    )


def _write_settings(
    folder: Path,
    said: dict[str, Any],
    settings: GenerationSettings,
    start: SpeechStart,
    kept: dict[str, list[int]],
) -> None:
    """Say in `generation_config.json` all that GenAI has numbers of its own for."""
    path = folder / GENERATION_FILE
    stops = list(settings.stops)
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    longest = own.get("max_length")
    written = (
        own
        | {key: said[key] for key in (_SILENT, "lang_to_id", "task_to_id") if key in said}
        | {
            "decoder_start_token_id": settings.starts,
            "pad_token_id": settings.pad,
            "eos_token_id": stops[0] if len(stops) == 1 else stops,
            "is_multilingual": bool(start.languages),
            # Without a limit it reserves memory for as many tokens as there are numbers.
            "max_length": longest if longest and longest != 20 else settings.positions,
        }
        # It forbids tokens that are not there by writing behind the logits.
        | kept
    )
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _notes(
    target: GraphTarget, said: dict[str, Any], settings: GenerationSettings, start: SpeechStart
) -> list[str]:
    notes = []
    named = {
        "language": start.language,
        "task": start.task if start.task != "transcribe" else None,
    }
    words = ", ".join(f'{key}="{value}"' for key, value in named.items() if value)
    if words:
        notes.append(
            f"{target.name}: OpenVINO GenAI reads neither language nor task from {GENERATION_FILE}: call "
            f"generate(..., {words}), as the checkpoint asks"
        )
    if start.tokens != start.asked:
        notes.append(
            f"{target.name}: OpenVINO GenAI begins texts with {_told(start.tokens)}, and transformers with "
            f"{_told(start.asked)}"
        )
    rules = [
        name for name in rule_names(read_rules(said, settings.vocabulary)) if name not in _HEEDED
    ]
    others = [*rules, *not_heeded(said)]
    if others:
        keys = ", ".join(f"`{key}`" for key in others)
        notes.append(f"{target.name}: OpenVINO GenAI does not heed {keys} of {GENERATION_FILE}")
    return notes


def _told(tokens: tuple[int, ...]) -> str:
    return ", ".join("the language" if token == DETECTED else str(token) for token in tokens)
