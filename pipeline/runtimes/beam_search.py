"""Beam search behind the reference loop: what `generate(num_beams=...)` of `transformers` 5.23 does.

After every token the likeliest continuations of all beams of a text are kept, and the cache's rows follow
them. Texts are searched on their own: what one writes does not hang on the others of the batch, and the
rows of a text that is settled leave the batch.

Source: `transformers.generation.utils.GenerationMixin._beam_search` and what it calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from pipeline.data.decoder_inputs import positions_of
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.generation import (
    GenerationOptions,
    check_request,
    check_room,
    pad_left,
    prefill,
)
from pipeline.runtimes.token_rules import PLAIN, TokenRules, require_any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.runtimes.decoder import Decoder, Floats

EarlyStopping: TypeAlias = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """How texts are searched; the fields mean what they mean in a `generation_config.json`.

    Attributes:
        beams: Texts that are kept at a time, 1 or more.
        tokens: New tokens of each text at most.
        stops: A text ends with one of these; it is among the new tokens.
        pad: What stands where there is no token; never looked at.
        length_penalty: A text's score is the sum of its log probabilities over its new tokens to this
            power: above 0 favours longer texts.
        early_stopping: True stops at so many ended texts as there are beams; False also when none that
            is written could win at its present length; "never" when none could at any length.
        chunk: Prompt tokens, padding included, that are read at a time; None: all.
        positions: Tokens of a text at most, as the model has positions; None: not checked.
        rules: What is asked of tokens beside their log probabilities, before these are added up.
    """

    beams: int
    tokens: int
    stops: frozenset[int] = frozenset()
    pad: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    chunk: int | None = None
    positions: int | None = None
    rules: TokenRules = PLAIN


@dataclass(frozen=True, slots=True)
class Beam:
    """One text that was found.

    Attributes:
        tokens: The new ones.
        score: Sum of their natural log probabilities, as rules changed them, over
            (how many)^length_penalty.
    """

    tokens: tuple[int, ...]
    score: float


def search_beams(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: BeamOptions,
    *,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[tuple[Beam, ...], ...]:
    """For each prompt the best continuations, the best first; at most as many as there are beams.

    Args:
        decoder: A loaded graph, or the checkpoint; bound to sources when there is an encoder.
        prompts: Token ids; one token or more each. They are read once, not once for each beam.
        options: How.
        on_step: Called with 0 when the first tokens are known, with 1 for the second, and so on.

    Raises:
        FeedError: when a prompt is empty, an option makes no sense, texts get too long, logits are
            no numbers, or rules leave no token to choose.
        StageError: when the decoder cannot be run.
    """
    _check(prompts, options)
    check_room(decoder, prompts, options.tokens)
    tokens, mask = pad_left(prompts, options.pad)
    logits, cache = prefill(decoder, tokens, mask, chunk=options.chunk)
    texts = [_Text(options, prompt) for prompt in prompts]
    rows_of = [
        [row] for row in range(len(prompts))
    ]  # of each text in the cache, one for each beam
    for number in range(options.tokens):
        last = logits[:, -1]
        origins: list[int] = []
        chosen: list[int] = []
        for text, rows in zip(texts, rows_of, strict=True):
            if not text.is_open:
                continue
            parents = text.advance(last[rows])
            start = len(origins)
            origins += [rows[parent] for parent in parents]
            chosen += [beam[-1] for beam in text.written]
            rows[:] = range(start, len(origins))
        on_step(number)
        if not origins:
            break
        if origins != list(range(cache.rows)):
            cache = decoder.reorder(cache, origins)
        mask = np.concatenate([mask[origins], np.ones((len(origins), 1), np.int64)], axis=1)
        feed = Feed(
            tokens=np.array(chosen, np.int64)[:, None],
            mask=mask,
            positions=positions_of(mask)[:, -1:],
        )
        logits, cache = decoder.step(feed, cache, last=1)
    return tuple(tuple(text.ended) for text in texts)


class _Text:
    """The beams of one text.

    Attributes:
        written: New tokens of each beam that goes on, the likeliest first.
        ended: Texts that have ended, the best first.
        is_open: It is not settled yet which texts win.
    """

    def __init__(self, options: BeamOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._prompt = prompt
        self._sums = np.zeros(1)
        self.written: list[tuple[int, ...]] = [()]
        self.ended: list[Beam] = []
        self.is_open = True

    def advance(self, logits: Floats) -> list[int]:
        """Add a token to every beam.

        Args:
            logits: float32 (beams, vocabulary), in the order of `written`.

        Returns:
            For each beam of `written` from now on, which of those before it continues; empty when
            nothing is to be written any more.
        """
        options, vocabulary = self._options, logits.shape[1]
        sums = (self._scores(logits) + self._sums[:, None]).ravel()
        # So many that the beams remain even if one of them ends with each of the stops.
        count = max(2, 1 + len(options.stops)) * options.beams
        best = _largest(sums, count)
        length = len(self.written[0]) + 1
        is_last = length == options.tokens
        going: list[int] = []
        for place, at in enumerate(best.tolist()):
            if is_last or at % vocabulary in options.stops:
                if place < options.beams:
                    self._end((*self.written[at // vocabulary], at % vocabulary), sums[at])
            elif len(going) < options.beams:
                going.append(at)
        parents = [at // vocabulary for at in going]
        self.written = [
            (*self.written[parent], at % vocabulary)
            for parent, at in zip(parents, going, strict=True)
        ]
        self._sums = sums[going]
        self.is_open = bool(going) and not self._is_settled(length)
        if not self.is_open:
            self.written = []
            return []
        return parents

    def _scores(self, logits: Floats) -> NDArray[np.float64]:
        """Log probabilities of what may follow each beam, float64 (beams, vocabulary).

        Raises:
            FeedError: logits are no numbers, or nothing may follow any.
        """
        if not np.isfinite(logits).all():
            raise FeedError("logits are NaN or infinite, so no token can be chosen")
        scores, options = log_softmax(logits), self._options
        if options.rules == PLAIN:
            return scores
        for row, new in enumerate(self.written):
            scores[row] = options.rules.apply(
                scores[row], self._prompt, new, tokens=options.tokens, stops=options.stops
            )
        require_any(scores, len(self.written[0]))
        return scores

    def _end(self, tokens: tuple[int, ...], total: float) -> None:
        score = float(total) / len(tokens) ** self._options.length_penalty
        # Of equal ones that which ended earlier stays before.
        self.ended = sorted([*self.ended, Beam(tokens, score)], key=lambda beam: -beam.score)
        del self.ended[self._options.beams :]

    def _is_settled(self, length: int) -> bool:
        """Whether no text that is still written could come in among those that have ended."""
        options = self._options
        if len(self.ended) < options.beams:
            return False
        if options.early_stopping is True:
            return True
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = options.tokens
        return bool(self._sums[0] / length**options.length_penalty <= self.ended[-1].score)


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural log probabilities, float64 (rows, vocabulary)."""
    shifted: NDArray[np.float64] = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the largest, the largest first and of equal ones the first; none of what is forbidden."""
    count = min(count, int(np.isfinite(values).sum()))
    least = np.partition(values, -count)[-count]
    places = np.flatnonzero(values >= least)
    found: NDArray[np.int64] = places[np.argsort(-values[places], kind="stable")][:count]
    return found


def _check(prompts: Sequence[Sequence[int]], options: BeamOptions) -> None:
    check_request(
        prompts,
        GenerationOptions(tokens=options.tokens, chunk=options.chunk, positions=options.positions),
    )
    wrong = {
        "beams": options.beams < 1,
        "length_penalty": not np.isfinite(options.length_penalty),
        "early_stopping": options.early_stopping not in (True, False, "never"),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise FeedError(f"`{name}` cannot be {getattr(options, name)}")
