"""The ways to write behind a source, each held against reading the whole target at once.

As `pipeline.parity.decoding`, for decoders whose texts have a source each. Targets cannot be padded in
front, as nothing masks them; sources can be padded behind, and are, when several are read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.parity.decoding import CHUNK, DECODED, Case, Record
from pipeline.parity.generation import noise, root_mean_square
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.generation import prefill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.runtimes.base import Array
    from pipeline.runtimes.decoder import Cache, Floats, Tokens
    from pipeline.runtimes.seq2seq import SourcedDecoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A target with its source.

    Attributes:
        index: The sample.
        tokens: int64 (length,): the target, or its beginning.
        source: What the encoder takes, without a batch axis.
    """

    index: int
    tokens: Tokens
    source: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class _Read:
    """Logits (positions, vocabulary) and cache (heads, positions, width) of one target."""

    logits: Floats
    cache: Mapping[str, Floats]


class PairRecorder:
    """Reads targets in every way and keeps how far they are from being read whole.

    Args:
        bind: A decoder for sources with a batch axis.
        join: Sources of several texts as one batch, padded.
        texts: Two or more, of two tokens or more each.
        unit: Root mean square of the logits; 0: that of these texts.
    """

    def __init__(
        self,
        bind: Callable[[Mapping[str, Array]], SourcedDecoder],
        join: Callable[[Sequence[Mapping[str, Array]]], Mapping[str, Array]],
        texts: Sequence[Sourced],
        unit: float = 0.0,
    ) -> None:
        self._bind = bind
        self._join = join
        self._texts = texts
        self._unit = unit
        self._whole: list[_Read] = []
        self._units: dict[str, float] = {}
        self._records: dict[tuple[Case, str], Record] = {}

    @property
    def records(self) -> tuple[Record, ...]:
        """What was found so far, in the order in which it was."""
        return tuple(self._records.values())

    def steps(self) -> int:
        """How often `run` calls `advance`."""
        return len(self._texts) + 2

    def run(self, longest: Sourced, advance: Callable[[], None]) -> None:
        """All cases.

        Args:
            longest: A target as long as targets may be.
            advance: Told of every piece of work.
        """
        for text in self._texts:
            if not self._attempt("whole", partial(self._add_whole, text)):
                return  # nothing to hold the others against
        self._unit = self._unit or root_mean_square([each.logits for each in self._whole])
        self._units = {
            name: root_mean_square([each.cache[name] for each in self._whole])
            for name in self._whole[0].cache
        }
        ways: tuple[tuple[Case, int], ...] = (("token_by_token", 1), ("chunked", CHUNK))
        for text, whole in zip(self._texts, self._whole, strict=True):
            for case, chunk in ways:
                self._attempt(case, partial(self._alone, case, text, whole, chunk))
            advance()
        self._attempt("padded_sources", self._together)
        advance()
        self._attempt("longest", lambda: self._longest(longest))
        advance()

    def _attempt(self, case: Case, work: Callable[[], Any]) -> bool:
        """Whether it could be done; what refuses is noted."""
        try:
            work()
        except PipelineError as error:
            record = self._record(case, "logits")
            record.problem = record.problem or error.message
            return False
        return True

    def _record(self, case: Case, output: Any) -> Record:
        key = (case, str(output))
        return self._records.setdefault(key, Record(case=case, output=output, against="itself"))

    def _read(self, text: Sourced, chunk: int | None) -> _Read:
        tokens = text.tokens[None]
        decoder = self._bind(self._join([text.source]))
        logits, cache = prefill(decoder, tokens, np.ones_like(tokens), chunk=chunk, keeps_all=True)
        return _Read(logits[0], {name: a[0] for name, a in decoder.read(cache).items()})

    def _add_whole(self, text: Sourced) -> None:
        self._whole.append(self._read(text, None))

    def _alone(self, case: Case, text: Sourced, whole: _Read, chunk: int) -> None:
        self._compare(case, text, self._read(text, chunk), whole)

    def _compare(self, case: Case, text: Sourced, found: _Read, expected: _Read) -> None:
        length = len(found.logits)
        value = noise(found.logits, expected.logits[:length], self._unit)
        self._record(case, "logits").add(text.index, value)
        noises = {
            name: noise(found.cache[name], array[:, :length], self._units[name])
            for name, array in expected.cache.items()
        }
        worst = max(noises, key=lambda name: noises[name])
        self._record(case, "cache").add(text.index, noises[worst], worst)

    def _together(self) -> None:
        """Sources of unlike lengths in a batch, then rows exchanged as beams that win and lose."""
        shortest = min(len(text.tokens) for text in self._texts)
        tokens = np.stack([text.tokens[:shortest] for text in self._texts])
        mask = np.ones_like(tokens)
        start = max(1, shortest - DECODED)
        decoder = self._bind(self._join([text.source for text in self._texts]))
        logits, cache = prefill(decoder, tokens[:, :start], mask[:, :start], keeps_all=True)
        pieces, before = [logits], cache
        for column in range(start, shortest):
            logits, cache = decoder.step(_column(tokens, column), cache)
            pieces.append(logits)
        read = decoder.read(cache)
        every = np.concatenate(pieces, axis=1)
        for row, (text, whole) in enumerate(zip(self._texts, self._whole, strict=True)):
            found = _Read(every[row], {name: array[row] for name, array in read.items()})
            self._compare("padded_sources", text, found, whole)
        if start < shortest:
            self._attempt("reordered", lambda: self._reordered(decoder, tokens, before, pieces[1]))

    def _reordered(
        self, decoder: SourcedDecoder, tokens: Tokens, cache: Cache, expected: Floats
    ) -> None:
        rows = [*reversed(range(len(self._texts))), len(self._texts) - 1]
        feed = _column(tokens[rows], cache.length)
        logits, _ = decoder.step(feed, decoder.reorder(cache, rows))
        record = self._record("reordered", "logits")
        for place, row in enumerate(rows):
            value = noise(logits[place], expected[row], self._unit)
            record.add(self._texts[row].index, value)

    def _longest(self, longest: Sourced) -> None:
        whole, stepped = read_longest(self._bind(self._join([longest.source])), longest.tokens)
        self._record("longest", "logits").add(-1, noise(stepped, whole, self._unit))


def read_longest(decoder: SourcedDecoder, tokens: Tokens) -> tuple[Floats, Floats]:
    """Logits, float32 (last tokens, vocabulary), of a long target: read whole, and with the cache."""
    start = max(1, len(tokens) - DECODED)
    row = tokens[None]
    ones = np.ones_like(row)
    whole, _ = prefill(decoder, row, ones, keeps_all=True)
    last, cache = prefill(decoder, row[:, :start], ones[:, :start])
    pieces = [last]
    for column in range(start, len(tokens)):
        piece, cache = decoder.step(_column(row, column), cache)
        pieces.append(piece)
    return whole[0, start - 1 :], np.concatenate(pieces, axis=1)[0]


def _column(tokens: Tokens, column: int) -> Feed:
    rows = len(tokens)
    return Feed(
        tokens=tokens[:, column : column + 1],
        mask=np.ones((rows, column + 1), np.int64),
        positions=np.full((rows, 1), column, np.int64),
    )
