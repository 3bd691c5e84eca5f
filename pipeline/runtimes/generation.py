"""The reference loop of text generation: prompts of any lengths in one batch, a cache, one token a step.

Shorter prompts are padded on the left, so that every text ends in the same column. A prompt may be read
in chunks. Sampled tokens of a text hang on the seed and its place among the prompts, not on what else
is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import positions_of
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.decoder import Feed, require_room
from pipeline.runtimes.token_rules import PLAIN, TokenRules, require_any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.runtimes.decoder import Cache, Decoder, Floats, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How texts are continued.

    Attributes:
        tokens: New tokens of each text at most.
        stops: A text ends with one of these; it is among the new tokens.
        pad: What stands where there is no token; never looked at.
        temperature: 0 takes the likeliest token, the first of equals. Otherwise logits are divided by
            it and a token is drawn.
        top_k: Draw among so many likeliest tokens (and those as likely as the last of them); None: all.
        top_p: Draw among the fewest likeliest tokens that hold this share (Holtzman et al., The
            Curious Case of Neural Text Degeneration, 2020); applied behind `top_k`.
        seed: Of what is drawn.
        chunk: Prompt tokens, padding included, that are read at a time; None: all.
        positions: Tokens of a text at most, as the model has positions; None: not checked.
        keeps_logits: Return the logits that each new token was taken from, as the decoder gave them.
        rules: What is asked of tokens beside that, before anything is divided or cut.
    """

    tokens: int
    stops: frozenset[int] = frozenset()
    pad: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    chunk: int | None = None
    positions: int | None = None
    keeps_logits: bool = False
    rules: TokenRules = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What came of it.

    Attributes:
        tokens: For each prompt the new tokens.
        logits: For each prompt float32 (new tokens, vocabulary), when they were asked for.
    """

    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Floats, ...] = ()


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    on_step: Callable[[int], None] = lambda _: None,
) -> Generation:
    """Continue prompts together.

    Args:
        decoder: A loaded graph, or the checkpoint.
        prompts: Token ids; one token or more each.
        options: How.
        on_step: Called with 0 when the first new tokens are known, with 1 for the second, and so on.

    Raises:
        FeedError: when a prompt is empty, an option makes no sense, texts get too long, or rules leave
            no token to choose.
        StageError: when the decoder cannot be run.
    """
    check_request(prompts, options)
    check_room(decoder, prompts, options.tokens)
    tokens, mask = pad_left(prompts, options.pad)
    logits, cache = prefill(decoder, tokens, mask, chunk=options.chunk)
    generators = [np.random.default_rng([options.seed, row]) for row in range(len(prompts))]
    made: list[list[int]] = [[] for _ in prompts]
    kept: list[list[Floats]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for number in range(options.tokens):
        last = logits[:, -1]
        scores: NDArray[np.floating] = last
        if options.rules != PLAIN:
            scores = _ruled(last, options, prompts, made, running)
        chosen = choose(last, options, generators, scores)
        for row, token in enumerate(chosen.tolist()):
            if not running[row]:
                continue
            made[row].append(token)
            if options.keeps_logits:
                kept[row].append(last[row].copy())
            running[row] = token not in options.stops
        on_step(number)
        if number + 1 == options.tokens or not any(running):
            break
        # Rows that have ended go on, unseen: their masks must not change the shape of others'.
        mask = np.concatenate([mask, np.ones((len(prompts), 1), np.int64)], axis=1)
        feed = Feed(tokens=chosen[:, None], mask=mask, positions=positions_of(mask)[:, -1:])
        logits, cache = decoder.step(feed, cache, last=1)
    return Generation(
        tokens=tuple(tuple(row) for row in made),
        logits=tuple(np.stack(rows) for rows in kept) if options.keeps_logits else (),
    )


def pad_left(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tokens, Tokens]:
    """Tokens and mask, int64 (prompts, longest), with the padding in front."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), longest), pad, np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask


def prefill(
    decoder: Decoder,
    tokens: Tokens,
    mask: Tokens,
    *,
    chunk: int | None = None,
    cache: Cache | None = None,
    keeps_all: bool = False,
) -> tuple[Floats, Cache]:
    """Read tokens behind what is in the cache, some at a time.

    Args:
        decoder: The decoder.
        tokens: int64 (rows, sequence).
        mask: int64 (rows, past + sequence).
        chunk: Tokens at a time; None: all at once.
        cache: What was read before; None: nothing.
        keeps_all: Return the logits of all tokens and not of the last one only.

    Returns:
        Logits, float32 (rows, sequence or 1, vocabulary), and the cache.
    """
    rows, length = tokens.shape
    cache = decoder.empty(rows) if cache is None else cache
    past, size = cache.length, chunk or length
    positions = positions_of(mask)[:, past:]
    found = []
    for start in range(0, length, size):
        end = min(length, start + size)
        feed = Feed(
            tokens=tokens[:, start:end],
            mask=mask[:, : past + end],
            positions=positions[:, start:end],
        )
        logits, cache = decoder.step(feed, cache, last=None if keeps_all else 1)
        found.append(logits)
    return (np.concatenate(found, axis=1) if keeps_all else found[-1]), cache


def _ruled(
    logits: Floats,
    options: GenerationOptions,
    prompts: Sequence[Sequence[int]],
    made: Sequence[Sequence[int]],
    running: Sequence[bool],
) -> NDArray[np.float64]:
    """What the rules make of logits; of rows that have ended, the logits."""
    scores: NDArray[np.float64] = logits.astype(np.float64)
    for row, (prompt, new) in enumerate(zip(prompts, made, strict=True)):
        if running[row]:
            scores[row] = options.rules.apply(
                logits[row], prompt, new, tokens=options.tokens, stops=options.stops
            )
            require_any(scores[row], len(new))
    return scores


def choose(
    logits: Floats,
    options: GenerationOptions,
    generators: Sequence[np.random.Generator],
    scores: NDArray[np.floating] | None = None,
) -> Tokens:
    """The next token of each row.

    Args:
        logits: float32 (rows, vocabulary).
        options: How.
        generators: One for each row.
        scores: What rules made of the logits, -inf where a token is forbidden; None: the logits.

    Returns:
        int64 (rows,).

    Raises:
        FeedError: when logits are NaN or infinite: nothing can be chosen among them.
    """
    if not np.isfinite(logits).all():
        raise FeedError("logits are NaN or infinite, so no token can be chosen")
    scores = logits if scores is None else scores
    if options.temperature == 0.0:
        greedy: Tokens = scores.argmax(axis=-1)
        return greedy
    shares = distribution(scores, options)
    drawn = [
        generator.choice(row.size, p=row)
        for generator, row in zip(generators, shares, strict=True)
    ]
    return np.array(drawn, np.int64)


def distribution(logits: NDArray[np.floating], options: GenerationOptions) -> NDArray[np.float64]:
    """What tokens are drawn from: shares, float64 (rows, vocabulary), that add up to 1."""
    scaled: NDArray[np.float64] = logits.astype(np.float64) / options.temperature
    if options.top_k is not None and options.top_k < scaled.shape[1]:
        least = np.partition(scaled, -options.top_k, axis=1)[:, [-options.top_k]]
        scaled[scaled < least] = -np.inf
    shares: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    if options.top_p is not None:
        order = np.argsort(-shares, axis=1, kind="stable")
        ordered = np.take_along_axis(shares, order, axis=1)
        # The token that reaches the share is in, so at least one is.
        is_out = np.cumsum(ordered, axis=1) - ordered >= options.top_p
        ordered[is_out] = 0.0
        np.put_along_axis(shares, order, ordered, axis=1)
        shares /= shares.sum(axis=1, keepdims=True)
    return shares


def check_request(prompts: Sequence[Sequence[int]], options: GenerationOptions) -> None:
    """Refuse what cannot be written.

    Raises:
        FeedError: when a prompt is empty, an option makes no sense, or texts get too long.
    """
    if not prompts or not all(prompts):
        raise FeedError("a prompt without a token cannot be continued")
    wrong = {
        "tokens": options.tokens < 1,
        "temperature": not 0.0 <= options.temperature < float("inf"),
        "top_k": options.top_k is not None and options.top_k < 1,
        "top_p": options.top_p is not None and not 0.0 < options.top_p <= 1.0,
        "chunk": options.chunk is not None and options.chunk < 1,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise FeedError(f"`{name}` cannot be {getattr(options, name)}")
    longest = max(len(prompt) for prompt in prompts)
    if options.positions is not None and longest + options.tokens > options.positions:
        raise FeedError(
            f"a prompt of {longest} tokens and {options.tokens} new ones are more than the "
            f"{options.positions} positions there are",
            hint=f"ask for {max(0, options.positions - longest)} new tokens or fewer",
        )


def check_room(decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Refuse texts that a static cache has no room for, before anything is computed.

    Args:
        decoder: What is to read them.
        prompts: Token ids, one prompt or more.
        tokens: New ones for each.

    Raises:
        FeedError: when they are longer; the last new token is not read again.
    """
    longest = max(len(prompt) for prompt in prompts)
    require_room(longest + tokens - 1, getattr(decoder, "room", None))
