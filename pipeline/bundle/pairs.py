"""Encoders with decoders as Optimum and transformers.js load them, `decoder_model_merged.onnx` and all.

They run the encoder for its states alone, so what makes keys and values of them moves into the decoder
(`pipeline.graph.merged_decoder`). What was written is run once as they run it, and must choose the tokens
of the artifact's own graphs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.same_tokens import (
    FAR,
    FAR_ELSE,
    PROMPTS,
    TOKENS,
    first_difference,
    prompts_of,
)
from pipeline.data.decoder_inputs import (
    MASK,
    SOURCE_MASK,
    is_cache,
    is_present,
    is_source,
    past_name,
)
from pipeline.errors import ArtifactError
from pipeline.runtimes.decoder import LOGITS
from pipeline.runtimes.seq2seq import IDS, STATES
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.bundle.generation_settings import GenerationSettings
    from pipeline.bundle.graphs import GraphTarget
    from pipeline.runtimes.base import Runner
    from pipeline.runtimes.decoder import Floats
    from pipeline.runtimes.generation import Generation

ENCODER_NAME: Final = "encoder_model"
DECODER_NAME: Final = "decoder_model_merged"
_FEATURES: Final = "input_features"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTrial:
    """Sources, and what the artifact's graphs make of them.

    Attributes:
        sources: What the encoder takes of each, with a batch axis of 1.
        starts: The first token of what is written.
        length: New tokens at most.
        stops: Tokens that end a text.
        own: What our own loop makes of each.
    """

    sources: tuple[dict[str, NDArray[Any]], ...]
    starts: int
    length: int
    stops: tuple[int, ...]
    own: tuple[Generation, ...]


def copy_pair(
    target: GraphTarget,
    folder: Path,
    *,
    suffix: str = "",
    axes: Mapping[str, str],
    has_any_width: bool = False,
) -> PairTrial:
    """Write both graphs of a target, and run them.

    Args:
        target: Whose.
        folder: Where to; on the disk where the artifact's copy is to be.
        suffix: Behind both names, as in `encoder_model_quantized.onnx`.
        axes: Other names for free axes.
        has_any_width: As of `write_merged_pair`.

    Returns:
        What other programs must make of the same sources.

    Raises:
        ArtifactError: the graphs cannot be cut there, or choose other tokens when they are.
        RecipeError: settings of generation contradict.
    """
    from pipeline.graph.merged_decoder import write_merged_pair

    places = (folder / f"{ENCODER_NAME}{suffix}.onnx", folder / f"{DECODER_NAME}{suffix}.onnx")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".merging-") as scratch:
        write_merged_pair(
            target.graph_file(ENCODER),
            target.graph_file(DECODER),
            Path(scratch),
            places,
            axes=axes,
            has_any_width=has_any_width,
        )
    trial = make_trial(
        target.graph_file(ENCODER), target.graph_file(DECODER), read_generation_settings(target)
    )
    require_same(trial, places, precision=target.declaration.precision, where=target.name)
    return trial


def require_same(
    trial: PairTrial, places: tuple[Path, Path], *, precision: str, where: str
) -> None:
    """Run graphs that were written as Optimum and transformers.js do.

    Args:
        trial: What must come of them.
        places: Encoder and decoder.
        precision: Of the target.
        where: The target, for messages.

    Raises:
        ArtifactError: tokens differ, or logits by more than sums in another order do.
    """
    runs = _run_merged(*places, trial)
    problem = first_difference(trial.own, [tokens for tokens, _ in runs], trial.stops)
    far = max(
        _distance(own.logits[0], logits) for own, (_, logits) in zip(trial.own, runs, strict=True)
    )
    limit = FAR.get(precision, FAR_ELSE)
    if not problem and not far <= limit:
        problem = f"logits are {far:.2g} of their size away, where {limit:g} is allowed"
    if problem:
        raise ArtifactError(
            f"its graphs as {places[0].name} and {places[1].name}: {problem}", where=where
        )


def make_trial(encoder_file: Path, decoder_file: Path, settings: GenerationSettings) -> PairTrial:
    """Run the graphs of an artifact on a few sources.

    Raises:
        StageError: they cannot be run.
    """
    from pipeline.runtimes.generation import GenerationOptions, generate
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.seq2seq import SourcedDecoder

    assert settings.starts is not None
    length = min(TOKENS, settings.positions - 1)
    options = GenerationOptions(
        tokens=length, stops=frozenset(settings.stops), pad=settings.pad, keeps_logits=True
    )
    with (
        OnnxRuntimeRunner(encoder_file, threads=1) as encoder,
        OnnxRuntimeRunner(decoder_file, threads=1) as decoder,
    ):
        sources = _sources(encoder, settings)
        own = tuple(
            generate(SourcedDecoder(encoder, decoder, source), [[settings.starts]], options)
            for source in sources
        )
    return PairTrial(
        sources=sources, starts=settings.starts, length=length, stops=settings.stops, own=own
    )


def _sources(encoder: Runner, settings: GenerationSettings) -> tuple[dict[str, NDArray[Any]], ...]:
    """Texts of several lengths, or sounds."""
    features = {spec.name: spec for spec in encoder.inputs}.get(_FEATURES)
    if features is not None:
        generator = np.random.default_rng(0)
        shape = [size if isinstance(size, int) else 1 for size in features.shape or ()]
        return tuple(
            {_FEATURES: generator.standard_normal(shape).astype(np.float32)}
            for _ in range(PROMPTS)
        )
    return tuple(
        {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, len(tokens)), np.int64),
        }
        for tokens in prompts_of(settings.vocabulary, settings.positions)
    )


def _run_merged(
    encoder_file: Path, decoder_file: Path, trial: PairTrial
) -> list[tuple[list[int], Floats]]:
    """Tokens and logits of the new graphs, run as Optimum and transformers.js do."""
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    with (
        OnnxRuntimeRunner(encoder_file, threads=1) as encoder,
        OnnxRuntimeRunner(decoder_file, threads=1) as decoder,
    ):
        return [_continue(encoder, decoder, source, trial) for source in trial.sources]


def _continue(
    encoder: Runner, decoder: Runner, source: Mapping[str, NDArray[Any]], trial: PairTrial
) -> tuple[list[int], Floats]:
    states = encoder.run(source)[STATES]
    fixed: dict[str, NDArray[Any]] = {"encoder_hidden_states": states}
    if MASK in source:
        fixed[SOURCE_MASK] = source[MASK]
    cache = {
        spec.name: np.zeros(_empty(spec.shape or ()), np.dtype(spec.dtype))
        for spec in decoder.inputs
        if is_cache(spec.name)
    }
    tokens: list[int] = []
    logits: list[Floats] = []
    last = trial.starts
    while len(tokens) < trial.length and (not tokens or last not in trial.stops):
        step = {IDS: np.array([[last]], np.int64), "use_cache_branch": np.array([bool(tokens)])}
        found = decoder.run({**fixed, **step, **cache})
        fresh = {past_name(name): array for name, array in found.items() if is_present(name)}
        # What is of the source is made once.
        cache |= {name: a for name, a in fresh.items() if not tokens or not is_source(name)}
        logits.append(found[LOGITS][0, -1].astype(np.float32))
        last = int(np.argmax(logits[-1]))
        tokens.append(last)
    return tokens, np.stack(logits)


def _distance(own: Floats, other: Floats) -> float:
    """RMS of the difference over RMS of ours, of the steps that both have."""
    steps = min(len(own), len(other))
    size = float(np.sqrt(np.mean(np.square(own[:steps], dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(own[:steps] - other[:steps], dtype=np.float64)))) / size


def _empty(shape: Sequence[int | str | None]) -> list[int]:
    """Of the first cache: one text, no tokens; a width that is free is 1."""
    batch, heads, _, width = (size if isinstance(size, int) else 1 for size in shape)
    return [batch, heads, 0, width]
