"""Text from a published artifact, written by the reference loop: what its users would get of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.bundle.chat import chat_template, render_chat
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import TOKENIZER_FILE, read_graphs, require_tokenizer
from pipeline.errors import ArtifactError, RecipeError
from pipeline.source.json_files import read_json
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import tokenizers

    from pipeline.bundle.generation_settings import GenerationSettings
    from pipeline.bundle.graphs import GraphSource, GraphTarget
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.decoder import Decoder

DEFAULT_TOKENS: Final = 64
_SOURCES: Final = ("max_source_positions", "max_position_embeddings", "n_positions")
"""Of an encoder that reads texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What is to be written, and how.

    Attributes:
        prompts: Texts to continue, or of encoders with decoders to answer.
        sounds: WAV files, for models that listen.
        target: Which; empty for the first one that runs on the CPU.
        tokens: New tokens of each text at most; None: 64, or fewer where the model has fewer positions.
        temperature, top_k, top_p, seed: As in `GenerationOptions`.
        beams: Above 1 for beam search, and then `length_penalty` and `early_stopping` hold.
        is_chat: Prompts are what a user says, and the artifact's chat template stands around them.
        threads: Of ONNX Runtime; None leaves it to that.
    """

    prompts: tuple[str, ...] = ()
    sounds: tuple[Path, ...] = ()
    target: str = ""
    tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    is_chat: bool = False
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """One text.

    Attributes:
        prompt: What was asked, or the sound's file.
        text: The new tokens as text.
        tokens: The new tokens.
        ended: By a token that ends texts, or because it is as long as was asked.
        score: Of beam search; None without.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    ended: Literal["stop", "length"]
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTexts:
    """What came of a request.

    Attributes:
        artifact: Name and version.
        ttft_ms: From the prompts, read as tokens, to the first new ones; an encoder is part of it.
        tokens_per_s: New tokens of all texts by the time for all of them, the first included.
    """

    artifact: str
    target: str
    precision: str
    texts: tuple[WrittenText, ...]
    ttft_ms: float
    tokens_per_s: float


def generate_texts(artifact: Path, request: TextRequest) -> WrittenTexts:
    """Verify an artifact, and let one of its targets write.

    Args:
        artifact: Its directory.
        request: What is asked for.

    Raises:
        RecipeError: the artifact failed its gates or writes no texts, there is no such target, it has no
            tokenizer or no chat template, prompts are empty or longer than the model has positions,
            or an option makes no sense.
        ArtifactError: the artifact is damaged.
        StageError: a graph cannot be run, or a sound cannot be read.
    """
    source = read_graphs(
        artifact, [request.target] if request.target else [], no_pairs="", takes_static=True
    )
    if not source.task.has_cache:
        raise RecipeError(
            f"`{source.title}` is of task `{source.task.name}`, and writes no texts",
            hint="this takes artifacts of text-generation, text2text-generation and "
            "automatic-speech-recognition",
        )
    target = _choose_target(source)
    is_heard = source.task.modality == "audio"
    _check_request(request, is_heard=is_heard)
    require_tokenizer(target, "this")
    settings = read_generation_settings(target)
    tokenizer = _read_tokenizer(target)
    if is_heard:
        return _behind_encoder(
            source, target, settings, tokenizer, request, _hear(target, request)
        )
    encoded = [_encode(tokenizer, target, prompt, request) for prompt in request.prompts]
    if target.parts:
        _check_sources(target, encoded)
        return _behind_encoder(
            source, target, settings, tokenizer, request, _padded(encoded, settings.pad)
        )
    from pipeline.runtimes.ort_decoder import OrtDecoder

    with OrtDecoder(target.graph_file(), threads=request.threads) as decoder:
        return _write(source, target, settings, tokenizer, request, encoded, lambda: decoder)


def _choose_target(source: GraphSource) -> GraphTarget:
    """The first one for the CPU.

    Raises:
        RecipeError: there is none.
    """
    for target in source.targets:
        if target.declaration.provider == "cpu":
            return target
    names = ", ".join(f"`{target.name}`" for target in source.targets)
    raise RecipeError(
        f"{names} of `{source.title}` run on a GPU, and texts are written on the CPU here",
        hint="build a target with `runtime: onnxruntime` and no `provider`",
    )


def _check_request(request: TextRequest, *, is_heard: bool) -> None:
    if is_heard and (request.prompts or request.is_chat or not request.sounds):
        raise RecipeError("the model listens: it takes sounds", hint="--audio FILE.wav")
    if not is_heard and (request.sounds or not request.prompts):
        raise RecipeError("the model reads: it takes texts", hint="--prompt TEXT")
    drawn = request.temperature > 0
    if request.beams > 1 and drawn:
        raise RecipeError(
            "beams and a temperature do not go together", hint="leave one of them out"
        )
    if not drawn and (request.top_k is not None or request.top_p is not None):
        raise RecipeError(
            "top-k and top-p choose among what is drawn, and nothing is drawn without a temperature",
            hint="--temperature 1",
        )


def _read_tokenizer(target: GraphTarget) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_buffer((target.folder / TOKENIZER_FILE).read_bytes())
    except ValueError as error:
        raise ArtifactError(
            f"{TOKENIZER_FILE} cannot be read: {error}", where=target.name
        ) from error
    made.no_padding()
    made.no_truncation()
    return made


def _encode(
    tokenizer: tokenizers.Tokenizer, target: GraphTarget, prompt: str, request: TextRequest
) -> list[int]:
    """Tokens of a prompt.

    Raises:
        RecipeError: there are none, or there is no chat template.
    """
    text = prompt
    if request.is_chat:
        if not chat_template(target.folder):
            raise RecipeError(
                f"target `{target.name}` has no chat template, so it cannot be talked to",
                hint="leave --chat out: the model then continues the text as it is",
            )
        text = render_chat(target.folder, [{"role": "user", "content": prompt}])
    # A template brings the special tokens along, as transformers says of its own.
    found: list[int] = tokenizer.encode(text, add_special_tokens=not request.is_chat).ids
    if not found:
        raise RecipeError(
            f"prompt {prompt!r} has no token, and the tokenizer puts none before it",
            hint="give a text of one token or more",
        )
    return found


def _check_sources(target: GraphTarget, encoded: Sequence[Sequence[int]]) -> None:
    limits = [target.config[key] for key in _SOURCES if isinstance(target.config.get(key), int)]
    longest = max(map(len, encoded))
    # The one named `n_positions` is no limit of T5, whose positions are relative.
    if limits and "relative_attention_num_buckets" not in target.config and longest > limits[0]:
        raise RecipeError(
            f"a text has {longest} tokens, and the encoder has {limits[0]} positions",
            hint="give shorter texts",
        )


def _padded(encoded: Sequence[Sequence[int]], pad: int) -> dict[str, Array]:
    """Sources of one batch, padded behind: int64 (texts, longest)."""
    import numpy as np

    shape = (len(encoded), max(map(len, encoded)))
    tokens, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, one in enumerate(encoded):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def _hear(target: GraphTarget, request: TextRequest) -> dict[str, Array]:
    """Spectrograms of the sounds, float32 (sounds, mel bins, frames)."""
    import numpy as np

    from pipeline.data.prepare.sounds import FEATURES, load_extractor, read_wav

    extractor = load_extractor(target.folder)
    rate = int(extractor.sampling_rate)
    sounds = [read_wav(path, path.name, rate, str(path.parent)) for path in request.sounds]
    made = [
        extractor(sound, sampling_rate=rate, return_tensors="np")[FEATURES][0] for sound in sounds
    ]
    return {FEATURES: np.stack(made).astype(np.float32)}


def _behind_encoder(
    source: GraphSource,
    target: GraphTarget,
    settings: GenerationSettings,
    tokenizer: tokenizers.Tokenizer,
    request: TextRequest,
    sources: dict[str, Array],
) -> WrittenTexts:
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.seq2seq import SourcedDecoder

    assert settings.starts is not None
    start = [settings.starts, *_forced(target)]
    count = len(next(iter(sources.values())))
    with (
        OnnxRuntimeRunner(target.graph_file(ENCODER), threads=request.threads) as encoder,
        OnnxRuntimeRunner(target.graph_file(DECODER), threads=request.threads) as decoder,
    ):
        return _write(
            source,
            target,
            settings,
            tokenizer,
            request,
            [start] * count,
            lambda: SourcedDecoder(encoder, decoder, sources),
        )


def _forced(target: GraphTarget) -> list[int]:
    """The token that every text goes on with behind the first, such as a language."""
    said: dict[str, Any] = dict(target.config)
    path = target.folder / "generation_config.json"
    if path.is_file():
        said |= read_json(path, path.name)
    forced = said.get("forced_bos_token_id")
    return [forced] if isinstance(forced, int) else []


def _write(
    source: GraphSource,
    target: GraphTarget,
    settings: GenerationSettings,
    tokenizer: tokenizers.Tokenizer,
    request: TextRequest,
    prompts: list[list[int]],
    bind: Callable[[], Decoder],
) -> WrittenTexts:
    from pipeline.runtimes.base import FeedError

    tokens = _new_tokens(settings, request, max(map(len, prompts)))
    stamps: list[float] = []
    started = time.perf_counter()
    try:
        made, scores = _run(
            bind(),
            prompts,
            tokens,
            settings,
            request,
            lambda _: stamps.append(time.perf_counter() - started),
        )
    except FeedError as error:
        raise RecipeError(error.message, hint=error.hint) from error
    stops = frozenset(settings.stops)
    asked = request.prompts or tuple(str(path) for path in request.sounds)
    return WrittenTexts(
        artifact=source.title,
        target=target.name,
        precision=target.declaration.precision,
        texts=tuple(
            WrittenText(
                prompt=prompt,
                text=tokenizer.decode(list(new), skip_special_tokens=True),
                tokens=new,
                ended="stop" if new and new[-1] in stops else "length",
                score=score,
            )
            for prompt, new, score in zip(asked, made, scores, strict=True)
        ),
        ttft_ms=stamps[0] * 1e3,
        tokens_per_s=sum(map(len, made)) / stamps[-1],
    )


def _run(
    decoder: Decoder,
    prompts: list[list[int]],
    tokens: int,
    settings: GenerationSettings,
    request: TextRequest,
    on_step: Callable[[int], None],
) -> tuple[tuple[tuple[int, ...], ...], tuple[float | None, ...]]:
    """New tokens of each text, and the score of beam search."""
    from pipeline.runtimes.beam_search import BeamOptions, search_beams
    from pipeline.runtimes.generation import GenerationOptions, generate

    stops = frozenset(settings.stops)
    if request.beams != 1:
        wide = BeamOptions(
            beams=request.beams,
            tokens=tokens,
            stops=stops,
            pad=settings.pad,
            length_penalty=request.length_penalty,
            early_stopping=request.early_stopping,
        )
        best = [beams[0] for beams in search_beams(decoder, prompts, wide, on_step=on_step)]
        return tuple(beam.tokens for beam in best), tuple(beam.score for beam in best)
    options = GenerationOptions(
        tokens=tokens,
        stops=stops,
        pad=settings.pad,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
    )
    made = generate(decoder, prompts, options, on_step=on_step).tokens
    return made, (None,) * len(made)


def _new_tokens(settings: GenerationSettings, request: TextRequest, longest: int) -> int:
    """How many are written at most.

    Raises:
        RecipeError: the model has no positions for them.
    """
    room = settings.positions - longest
    tokens = min(DEFAULT_TOKENS, room) if request.tokens is None else request.tokens
    if tokens > room or room < 1:
        raise RecipeError(
            f"a prompt of {longest} tokens"
            + (f" and {tokens} new ones are" if room > 0 else " is")
            + f" longer than the {settings.positions} positions of the model",
            hint=f"--tokens {room}, or fewer" if room > 0 else "give a shorter prompt",
        )
    return tokens
