"""Folders of Whisper that ONNX Runtime GenAI loads: our two graphs as they are, and their names.

Its encoder gives keys and values of the source for every layer, as ours does.
Sources: `models/builders/whisper.py` of onnxruntime-genai 0.18, and what its library asks for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.graphs import copy_companions, copy_graph, require_tokenizer
from pipeline.data.decoder_inputs import CACHE_PREFIX, PRESENT_PREFIX, is_cache
from pipeline.errors import RecipeError
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bundle.generation_settings import GenerationSettings
    from pipeline.bundle.graphs import GraphTarget

FILES: Final = {ENCODER: "encoder.onnx", DECODER: "decoder.onnx"}
MODEL_TYPE: Final = "whisper"
_POSITIONS: Final = 1500
"""Of 30 seconds, 3000 frames: GenAI takes no other length."""


def write_speech(
    target: GraphTarget,
    settings: GenerationSettings,
    folder: Path,
    *,
    providers: list[dict[str, dict[str, str]]],
    search: dict[str, Any],
) -> dict[str, Any]:
    """Write graphs and tokenizer of one target, and say its configuration.

    Args:
        target: Of task `automatic-speech-recognition`.
        settings: Of generation.
        folder: Where to.
        providers: GenAI's name of the target's provider.
        search: GenAI's words for how tokens are chosen.

    Raises:
        RecipeError: it is no Whisper that reads 30 seconds, or has no tokenizer.
        ArtifactError: weights are not beside a graph.
    """
    require_tokenizer(target, "ONNX Runtime GenAI")
    kind, positions = (target.config.get(key) for key in ("model_type", "max_source_positions"))
    if kind != MODEL_TYPE or positions != _POSITIONS:
        raise RecipeError(
            f"target `{target.name}` is `model_type: {kind}` with {positions} positions of sound, and of "
            f"models that listen ONNX Runtime GenAI runs Whisper with {_POSITIONS} only",
            hint="export-optimum and export-transformersjs write others",
        )
    copy_companions(target, folder)
    for part, name in FILES.items():
        copy_graph(target.part(part), folder / name)
    sizes = _sizes(target)
    cache = {
        f"{prefix}{kind}_names": f"{CACHE_PREFIX}%d.{part}.{kind}"
        for prefix, part in (("past_", "decoder"), ("cross_past_", "encoder"))
        for kind in ("key", "value")
    }
    options = {"session_options": {"provider_options": providers}}
    return {
        "model": {
            "type": MODEL_TYPE,
            "context_length": settings.positions,
            "vocab_size": settings.vocabulary,
            "bos_token_id": settings.starts if settings.begins is None else settings.begins,
            "pad_token_id": settings.pad,
            "eos_token_id": list(settings.stops),
            "decoder_start_token_id": settings.starts,
            ENCODER: {
                **options,
                "filename": FILES[ENCODER],
                **sizes,
                "inputs": {"audio_features": "input_features"},
                "outputs": {
                    "encoder_hidden_states": "last_hidden_state",
                    "cross_present_key_names": f"{PRESENT_PREFIX}%d.encoder.key",
                    "cross_present_value_names": f"{PRESENT_PREFIX}%d.encoder.value",
                },
            },
            DECODER: {
                **options,
                "filename": FILES[DECODER],
                **sizes,
                "inputs": {"input_ids": "input_ids", **cache},
                "outputs": {
                    "logits": "logits",
                    "present_key_names": f"{PRESENT_PREFIX}%d.decoder.key",
                    "present_value_names": f"{PRESENT_PREFIX}%d.decoder.value",
                },
            },
        },
        "search": search | {"past_present_share_buffer": False},
    }


def speech_notes(target: GraphTarget) -> list[str]:
    """What its users must know."""
    notes = [
        "WhisperFeatureExtractor makes `input_features`: GenAI's own processor is not configured"
    ]
    path = target.folder / "generation_config.json"
    if path.is_file() and "suppress_tokens" in json.loads(path.read_text(encoding="utf-8")):
        notes.append(
            "GenAI suppresses no tokens, as `suppress_tokens` of generation_config.json would"
        )
    return notes


def _sizes(target: GraphTarget) -> dict[str, int]:
    shapes = [tensor.shape for tensor in target.graph.inputs if is_cache(tensor.name)]
    heads, width = int(shapes[0][1]), int(shapes[0][3])
    return {
        "hidden_size": heads * width,
        "head_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": len(shapes) // 4,
    }
