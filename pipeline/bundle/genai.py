"""Folders that ONNX Runtime GenAI loads: `genai_config.json`, the graph and its tokenizer.

Source of the keys: `src/config.cpp` and `src/models/` of onnxruntime-genai 0.18.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.asked_rules import not_heeded, read_rules, read_said, rule_names
from pipeline.bundle.consumer import has_package, try_in_consumer
from pipeline.bundle.genai_speech import speech_notes, write_speech
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import (
    GRAPH_FILE,
    copy_companions,
    copy_graph,
    read_graphs,
    require_tokenizer,
)
from pipeline.bundle.placing import placed_whole
from pipeline.bundle.written import Export, TriedModel
from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bundle.generation_settings import GenerationSettings
    from pipeline.bundle.graphs import GraphTarget
    from pipeline.graph.model_facts import ModelFacts

CONFIG_FILE: Final = "genai_config.json"
PACKAGE: Final = "onnxruntime_genai"
_TOKEN_INPUTS: Final = ("input_ids", "attention_mask", "position_ids")
_SHARED: Final = "com.microsoft::GroupQueryAttention"
"""The one operator that writes new keys and values into the memory of the old ones."""
_KINDS: Final = ("key", "value")
_MODEL_TYPE: Final = "decoder"
"""GenAI's word for any decoder with such inputs; the others switch on what single families need when
GenAI's own builder has made their graphs."""
_SIZES: Final = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
}
_PROVIDERS: Final[dict[str, list[dict[str, dict[str, str]]]]] = {"cpu": [], "cuda": [{"cuda": {}}]}


def export_genai(
    artifact: Path, directory: Path, *, targets: Sequence[str] = (), replace: bool = False
) -> Export[TriedModel]:
    """Write a folder for each decoder of an artifact, and generate text from it where GenAI is installed.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        targets: Which; empty for all.
        replace: What was written there earlier gives way.

    Raises:
        RecipeError: the artifact failed, there is no such target, it is of another task, it has no
            tokenizer, its settings of generation contradict, or GenAI has no such provider.
        ArtifactError: the artifact is damaged, or GenAI generates other tokens than it should.
    """
    with placed_whole(
        directory,
        replace=replace,
        is_ours=lambda child: (child / CONFIG_FILE).is_file(),
        what="model of ONNX Runtime GenAI",
    ) as draft:
        source = read_graphs(artifact, targets, no_pairs="")
        if not source.task.has_cache:
            raise RecipeError(
                f"`{source.title}` is of task `{source.task.name}`, and ONNX Runtime GenAI "
                "generates text",
                hint="artifacts of task `text-generation` have the cache that it needs",
            )
        if source.task.parts and source.task.modality != "audio":
            raise RecipeError(
                f"`{source.title}` is an encoder with a decoder, and of these ONNX Runtime GenAI runs "
                "Whisper only",
                hint="export-optimum and export-transformersjs write it",
            )
        models, notes = [], list(source.left_out)
        for target in source.targets:
            settings = read_generation_settings(target)
            write_genai(target, settings, draft / target.name)
            trial, found = _try(target, settings, draft / target.name)
            models.append(
                TriedModel(target=target.name, precision=target.declaration.precision, trial=trial)
            )
            notes += [f"{target.name}: {note}" for note in (*_notes(target, settings), *found)]
    return Export(
        directory=directory, artifact=source.title, models=tuple(models), notes=tuple(notes)
    )


def write_genai(target: GraphTarget, settings: GenerationSettings, folder: Path) -> None:
    """Write the folder of one target.

    Raises:
        RecipeError: there is no tokenizer, the target's provider is none of GenAI's, or it listens and
            is no Whisper as GenAI runs it.
        ArtifactError: the graph is no decoder with a cache, or its weights are not beside it.
    """
    if target.parts:
        providers, search = _providers(target), _search(settings)
        config = write_speech(target, settings, folder, providers=providers, search=search)
    else:
        require_tokenizer(target, "ONNX Runtime GenAI")
        config = genai_config(target, settings)
        copy_companions(target, folder)
        copy_graph(target, folder / GRAPH_FILE)
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def genai_config(target: GraphTarget, settings: GenerationSettings) -> dict[str, Any]:
    """The content of `genai_config.json`.

    Raises:
        RecipeError: the target's provider is none of GenAI's.
        ArtifactError: the graph is no decoder with a cache.
    """
    layers, heads, width = cache_sizes(target.graph, target.name)
    inputs = {tensor.name for tensor in target.graph.inputs}
    decoder: dict[str, Any] = {
        "session_options": {"provider_options": _providers(target)},
        "filename": GRAPH_FILE,
        "head_size": width,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "inputs": {name: name for name in _TOKEN_INPUTS if name in inputs}
        | {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in _KINDS},
        "outputs": {"logits": "logits"}
        | {f"present_{kind}_names": f"present.%d.{kind}" for kind in _KINDS},
    }
    for key, names in _SIZES.items():
        sizes = [target.config[name] for name in names if isinstance(target.config.get(name), int)]
        decoder |= {key: sizes[0]} if sizes else {}
    model: dict[str, Any] = {
        "type": _MODEL_TYPE,
        "context_length": settings.positions,
        "vocab_size": settings.vocabulary,
        "pad_token_id": settings.pad,
        "eos_token_id": list(settings.stops),
        "decoder": decoder,
    }
    if settings.begins is not None:
        model["bos_token_id"] = settings.begins
    return {
        "model": model,
        "search": _search(settings)
        # Only where every layer can; elsewhere a step's cache is a tensor of its own.
        | {"past_present_share_buffer": target.graph.op_counts.get(_SHARED) == layers},
    }


def _providers(target: GraphTarget) -> list[dict[str, dict[str, str]]]:
    provider = target.declaration.provider
    if provider not in _PROVIDERS:
        raise RecipeError(
            f"target `{target.name}` is for ONNX Runtime's provider `{provider}`, which GenAI has not",
            hint=f"it has {', '.join(_PROVIDERS)}",
        )
    return _PROVIDERS[provider]


def _search(settings: GenerationSettings) -> dict[str, Any]:
    return {
        "do_sample": settings.is_sampled,
        "max_length": settings.positions,
        "min_length": 0,
        "num_beams": settings.beams,
        "repetition_penalty": settings.repetition_penalty,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
    }


def cache_sizes(graph: ModelFacts, where: str) -> tuple[int, int, int]:
    """Layers, key/value heads and the width of one, from the cache's inputs.

    Raises:
        ArtifactError: it has no such inputs, or layers differ.
    """
    cached = [t for t in graph.inputs if t.name.startswith("past_key_values.")]
    names = {f"past_key_values.{n}.{kind}" for n in range(len(cached) // 2) for kind in _KINDS}
    sizes = {(t.shape[1], t.shape[3]) if len(t.shape) == 4 else ("", "") for t in cached}
    heads, width = next(iter(sizes), ("", ""))
    if (
        {t.name for t in cached} != names
        or len(sizes) != 1
        or isinstance(heads, str)
        or isinstance(width, str)
    ):
        raise ArtifactError(
            "its cache is not keys and values of one size for every layer: "
            + (", ".join(sorted(t.name for t in cached)[:3]) or "there is none"),
            where=where,
        )
    return len(cached) // 2, heads, width


def _notes(target: GraphTarget, settings: GenerationSettings) -> list[str]:
    from pipeline.graph.kept_logits import can_keep_few

    if target.parts:
        return speech_notes(target)
    notes = []
    if can_keep_few(target.graph_file()):
        # A graph that always gives the last row alone (`prune_lm_head` of GenAI's builder) would go wrong
        # for batches, whose padding GenAI takes on the right only.
        notes.append(
            "GenAI does not feed `num_logits_to_keep`: a prompt costs the logits of all its tokens"
        )
    if not settings.stops:
        notes.append(
            "the checkpoint names no `eos_token_id`: texts end at their largest length only"
        )
    said = read_said(target)
    asked = (*rule_names(read_rules(said, settings.vocabulary)), *not_heeded(said))
    # The one rule that its own configuration has a word for.
    lost = [f"`{name}`" for name in asked if name != "repetition_penalty"]
    if lost:
        notes.append(f"GenAI does not heed {', '.join(lost)} of generation_config.json")
    if not settings.has_chat:
        notes.append("there is no chat template, so Tokenizer.apply_chat_template cannot be used")
    return notes


def _try(
    target: GraphTarget, settings: GenerationSettings, folder: Path
) -> tuple[str, tuple[str, ...]]:
    """Generate text with GenAI and with our own loop.

    Raises:
        ArtifactError: GenAI refuses it, or their tokens differ.
    """
    if not has_package(PACKAGE):
        return "", (
            "it was written and not tried: pip install 'convert-pipeline[genai]', then export again",
        )
    if target.declaration.provider != "cpu":
        return "", ("it was written and not tried: that takes its GPU",)
    answer = try_in_consumer(
        "pipeline.bundle.genai_speech_trial" if target.parts else "pipeline.bundle.genai_trial",
        {
            "folder": str(folder),
            "vocabulary": settings.vocabulary,
            "stops": list(settings.stops),
            "pad": settings.pad,
            "positions": settings.positions,
            "has_chat": settings.has_chat,
            "settings": asdict(settings),
        },
        what="ONNX Runtime GenAI",
        where=target.name,
    )
    return answer.told, answer.notes
