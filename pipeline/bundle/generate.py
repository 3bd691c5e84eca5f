"""Text from a published artifact, written by the reference loop: what its users would get of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.bundle.asked_rules import not_heeded, read_rules, read_said, speech_start
from pipeline.bundle.asked_texts import (
    check_sources,
    encode_prompt,
    hear_sounds,
    pad_sources,
    read_tokenizer,
)
from pipeline.bundle.generation_settings import GENERATION_FILE, read_generation_settings
from pipeline.bundle.graphs import read_graphs, require_tokenizer
from pipeline.errors import RecipeError
from pipeline.runtimes.token_rules import PLAIN, TokenRules
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
        is_plain: The logits alone decide. Otherwise what the checkpoint's `generation_config.json` asks of
            tokens is heeded: repetitions, forbidden and forced tokens, least lengths.
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
    is_plain: bool = False
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
        notes: What the checkpoint asks for and is not done.
    """

    artifact: str
    target: str
    precision: str
    texts: tuple[WrittenText, ...]
    ttft_ms: float
    tokens_per_s: float
    notes: tuple[str, ...] = ()


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
    settings, said = read_generation_settings(target), read_said(target)
    setup = _Setup(
        title=source.title,
        target=target,
        settings=settings,
        said=said,
        rules=PLAIN if request.is_plain else read_rules(said, settings.vocabulary),
        tokenizer=read_tokenizer(target),
        request=request,
    )
    if is_heard:
        return _behind_encoder(setup, hear_sounds(target, request.sounds))
    encoded = [
        encode_prompt(setup.tokenizer, target, prompt, is_chat=request.is_chat)
        for prompt in request.prompts
    ]
    if target.parts:
        check_sources(target, encoded)
        return _behind_encoder(setup, pad_sources(encoded, settings.pad))
    from pipeline.runtimes.ort_decoder import OrtDecoder

    with OrtDecoder(target.graph_file(), threads=request.threads) as decoder:
        return _write(setup, lambda: decoder, lambda _: encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What is loaded before anything is computed.

    Attributes:
        said: The checkpoint's `generation_config.json`.
    """

    title: str
    target: GraphTarget
    settings: GenerationSettings
    said: dict[str, Any]
    rules: TokenRules
    tokenizer: tokenizers.Tokenizer
    request: TextRequest


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
    if request.beams == 1 and (request.length_penalty != 1.0 or request.early_stopping):
        raise RecipeError(
            "a length penalty and early stopping are of beam search, and there is none",
            hint="--beams 4",
        )


def _behind_encoder(setup: _Setup, sources: dict[str, Array]) -> WrittenTexts:
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.seq2seq import SourcedDecoder

    target, threads = setup.target, setup.request.threads
    count = len(next(iter(sources.values())))
    with (
        OnnxRuntimeRunner(target.graph_file(ENCODER), threads=threads) as encoder,
        OnnxRuntimeRunner(target.graph_file(DECODER), threads=threads) as decoder,
    ):
        return _write(
            setup,
            lambda: SourcedDecoder(encoder, decoder, sources),
            lambda bound: _starts(setup, bound, count),
        )


def _starts(setup: _Setup, decoder: Decoder, count: int) -> list[list[int]]:
    """What the texts behind an encoder begin with."""
    from pipeline.runtimes.generation import GenerationOptions, generate

    start = setup.settings.starts
    assert start is not None
    if not setup.request.sounds or setup.request.is_plain:
        return [[start]] * count

    def detect(languages: Sequence[int]) -> list[int]:
        others = set(range(setup.settings.vocabulary)) - set(languages)
        options = GenerationOptions(
            tokens=1, pad=setup.settings.pad, rules=TokenRules(suppress=tuple(others))
        )
        return [found for (found,) in generate(decoder, [[start]] * count, options).tokens]

    found = speech_start(setup.said, start, detect)
    return found if len(found) == count else found * count


def _write(
    setup: _Setup,
    bind: Callable[[], Decoder],
    begin: Callable[[Decoder], list[list[int]]],
) -> WrittenTexts:
    from pipeline.runtimes.base import FeedError

    request, stops = setup.request, frozenset(setup.settings.stops)
    stamps: list[float] = []
    started = time.perf_counter()
    try:
        decoder = bind()
        prompts = begin(decoder)
        tokens = _new_tokens(setup.settings, request, max(map(len, prompts)))
        made, scores = _run(
            setup, decoder, prompts, tokens, lambda _: stamps.append(time.perf_counter() - started)
        )
    except FeedError as error:
        raise RecipeError(error.message, hint=error.hint) from error
    asked = request.prompts or tuple(str(path) for path in request.sounds)
    return WrittenTexts(
        artifact=setup.title,
        target=setup.target.name,
        precision=setup.target.declaration.precision,
        texts=tuple(
            WrittenText(
                prompt=prompt,
                text=setup.tokenizer.decode(list(new), skip_special_tokens=True),
                tokens=new,
                ended="stop" if new and new[-1] in stops else "length",
                score=score,
            )
            for prompt, new, score in zip(asked, made, scores, strict=True)
        ),
        ttft_ms=stamps[0] * 1e3,
        tokens_per_s=sum(map(len, made)) / stamps[-1],
        notes=() if request.is_plain else _notes(setup.said),
    )


def _notes(said: dict[str, Any]) -> tuple[str, ...]:
    keys = ", ".join(f"`{key}`" for key in not_heeded(said))
    told = f"{keys} of {GENERATION_FILE} not heeded: transformers writes other tokens"
    return (told,) if keys else ()


def _run(
    setup: _Setup,
    decoder: Decoder,
    prompts: list[list[int]],
    tokens: int,
    on_step: Callable[[int], None],
) -> tuple[tuple[tuple[int, ...], ...], tuple[float | None, ...]]:
    """New tokens of each text, and the score of beam search."""
    from pipeline.runtimes.beam_search import BeamOptions, search_beams
    from pipeline.runtimes.generation import GenerationOptions, generate

    request, stops = setup.request, frozenset(setup.settings.stops)
    if request.beams != 1:
        wide = BeamOptions(
            beams=request.beams,
            tokens=tokens,
            stops=stops,
            pad=setup.settings.pad,
            length_penalty=request.length_penalty,
            early_stopping=request.early_stopping,
            rules=setup.rules,
        )
        best = [beams[0] for beams in search_beams(decoder, prompts, wide, on_step=on_step)]
        return tuple(beam.tokens for beam in best), tuple(beam.score for beam in best)
    options = GenerationOptions(
        tokens=tokens,
        stops=stops,
        pad=setup.settings.pad,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        rules=setup.rules,
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
