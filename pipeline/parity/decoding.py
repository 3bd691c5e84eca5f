"""The ways to read a text with a cache, each held against reading it whole by the same decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from pipeline.data.decoder_inputs import positions_of
from pipeline.errors import PipelineError
from pipeline.parity.generation import noise, root_mean_square
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.generation import pad_left, prefill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.runtimes.decoder import Cache, Decoder, Floats, Tokens

Case: TypeAlias = Literal[
    "whole",
    "prefill",
    "token_by_token",
    "chunked",
    "left_padded",
    "batched",
    "padded_sources",
    "reordered",
    "longest",
]
CHUNK: Final = 5
"""Tokens of a chunk: no size that a model is built from, and the last chunk is a smaller one."""
DECODED: Final = 4
"""Tokens that are read one by one behind a prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Tokens of a sample, or its beginning.

    Attributes:
        index: The sample; -1 for what was put together of several.
        tokens: int64 (length,).
    """

    index: int
    tokens: Tokens


@dataclass(slots=True, kw_only=True)
class Record:
    """What one case showed of the logits or of the cache.

    Attributes:
        case: The case.
        output: `logits`, or `cache` for all keys and values.
        against: What it is held against: the decoder itself, or the checkpoint.
        noises: For each text, RMSE over the root mean square of all texts; of the cache the tensor
            with the largest.
        samples: For each of these, which sample it was.
        tensor: The cached tensor that was the worst of all.
        problem: A sentence, when something is wrong whatever the limit is.
    """

    case: Case
    output: Literal["logits", "cache"]
    against: Literal["itself", "torch"]
    noises: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    tensor: str = ""
    problem: str = ""

    def add(self, sample: int, value: float, tensor: str = "") -> None:
        """One text."""
        if not self.noises or value > max(self.noises):
            self.tensor = tensor
        self.noises.append(value)
        self.samples.append(sample)


@dataclass(frozen=True, slots=True)
class _Read:
    """Logits (positions, vocabulary) and cache (heads, positions, width) of one text."""

    logits: Floats
    cache: Mapping[str, Floats]

    def beginning(self, length: int) -> _Read:
        """What the first tokens alone would have made."""
        cache = {name: array[:, :length] for name, array in self.cache.items()}
        return _Read(self.logits[:length], cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a decoder can be read.

    Attributes:
        has_cache: It keeps keys and values.
        pads_left: Texts of unlike lengths may stand side by side, with padding in front.
    """

    has_cache: bool = True
    pads_left: bool = True


class DecodingRecorder:
    """Runs texts in every way and keeps how far they are from being read whole.

    Args:
        decoder: The graph, loaded.
        texts: Of one token or more.
        unit: Root mean square of the logits; 0: that of these texts.
        manner: What the graph can be asked; None: everything.
    """

    def __init__(
        self,
        decoder: Decoder,
        texts: Sequence[Text],
        unit: float = 0.0,
        manner: Manner | None = None,
    ) -> None:
        self._decoder = decoder
        self._texts = texts
        self._unit = unit
        self._manner = manner or Manner()
        self._whole: list[_Read] = []
        self._units: dict[str, float] = {}
        self._records: dict[tuple[Case, str], Record] = {}

    @property
    def records(self) -> tuple[Record, ...]:
        """What was found so far, in the order in which it was."""
        return tuple(self._records.values())

    def run(self, longest: Tokens | None, advance: Callable[[], None]) -> None:
        """All cases that the decoder can be asked; `advance` is called once for each text and case (`steps`).

        Args:
            longest: int64 (length,): a text as long as texts may be; None: without one.
            advance: Told of every piece of work.
        """
        for text in self._texts:
            done = self._attempt("whole", lambda text=text: self._alone(text, None))  # type: ignore[misc]
            if done is None:
                return  # nothing to hold the others against
            self._whole.append(done)
            advance()
        self._unit = self._unit or root_mean_square([each.logits for each in self._whole])
        self._units = {
            name: root_mean_square([each.cache[name] for each in self._whole])
            for name in self._whole[0].cache
        }
        ways = (("token_by_token", 1), ("chunked", CHUNK))
        for case, chunk in ways if self._manner.has_cache else ways[:1]:
            for text, whole in zip(self._texts, self._whole, strict=True):
                done = self._attempt(case, lambda t=text, c=chunk: self._alone(t, c))  # type: ignore[misc,arg-type]
                if done is not None:
                    self._compare(case, text, done, whole)  # type: ignore[arg-type]
                advance()
        together: Case = "left_padded" if self._manner.pads_left else "batched"
        self._attempt(together, lambda: self._together(together))
        advance()
        if longest is not None:
            self._attempt("longest", lambda: self._longest(longest))
        advance()

    def steps(self) -> int:
        """How often `run` calls `advance`."""
        return 3 * len(self._texts) + 2

    def _attempt(self, case: Case, work: Callable[[], Any]) -> Any:
        """What `work` gives; None when the decoder refuses, which is noted."""
        try:
            return work()
        except PipelineError as error:
            record = self._record(case, "logits")
            record.problem = record.problem or error.message
            return None

    def _record(self, case: Case, output: Literal["logits", "cache"]) -> Record:
        key = (case, output)
        return self._records.setdefault(key, Record(case=case, output=output, against="itself"))

    def _alone(self, text: Text, chunk: int | None) -> _Read:
        tokens = text.tokens[None]
        logits, cache = prefill(
            self._decoder, tokens, np.ones_like(tokens), chunk=chunk, keeps_all=True
        )
        return next(self._rows(logits, cache, [len(text.tokens)]))

    def _rows(self, logits: Floats, cache: Cache, lengths: Sequence[int]) -> Iterator[_Read]:
        """What each row made of its last tokens, so many as its text has."""
        values = self._decoder.read(cache)
        for row, length in enumerate(lengths):
            yield _Read(
                logits[row, logits.shape[1] - length :],
                {name: array[row, :, array.shape[2] - length :] for name, array in values.items()},
            )

    def _compare(self, case: Case, text: Text, found: _Read, expected: _Read) -> None:
        value = noise(found.logits, expected.logits, self._unit)
        self._record(case, "logits").add(text.index, value)
        noises = {
            name: noise(found.cache[name], array, self._units[name])
            for name, array in expected.cache.items()
        }
        if noises:
            worst = max(noises, key=lambda name: noises[name])
            self._record(case, "cache").add(text.index, noises[worst], worst)

    def _together(self, case: Case) -> None:
        """A batch: most at once, the last tokens one by one, then rows exchanged.

        It is padded on the left, or of beginnings that are equally long.
        """
        texts, wholes = self._texts, self._whole
        if case == "batched":
            least = min(len(text.tokens) for text in texts)
            texts = [replace(text, tokens=text.tokens[:least]) for text in texts]
            wholes = [whole.beginning(least) for whole in wholes]
        lengths = [len(text.tokens) for text in texts]
        tokens, mask = pad_left([text.tokens.tolist() for text in texts])
        width = tokens.shape[1]
        start = width - min(DECODED, min(lengths) - 1)
        logits, cache = prefill(self._decoder, tokens[:, :start], mask[:, :start], keeps_all=True)
        pieces, before = [logits], cache
        for column in range(start, width):
            feed = _column(tokens, mask, column)
            logits, cache = self._decoder.step(feed, cache)
            pieces.append(logits)
        found = self._rows(np.concatenate(pieces, axis=1), cache, lengths)
        for text, read, whole in zip(texts, found, wholes, strict=True):
            self._compare(case, text, read, whole)
        if start < width and self._manner.has_cache:
            self._attempt("reordered", lambda: self._reordered(tokens, mask, before, pieces[1]))

    def _reordered(self, tokens: Tokens, mask: Tokens, cache: Cache, expected: Floats) -> None:
        """Rows backwards and the last one twice, as beams that win and lose."""
        rows = [*reversed(range(len(self._texts))), len(self._texts) - 1]
        feed = _column(tokens[rows], mask[rows], cache.length)
        logits, _ = self._decoder.step(feed, self._decoder.reorder(cache, rows))
        record = self._record("reordered", "logits")
        for place, row in enumerate(rows):
            value = noise(logits[place], expected[row], self._unit)
            record.add(self._texts[row].index, value)

    def _longest(self, longest: Tokens) -> None:
        """The last tokens of the longest text, one by one behind all others."""
        expected, found = read_longest(self._decoder, longest)
        self._record("longest", "logits").add(-1, noise(found, expected, self._unit))


def read_longest(
    decoder: Decoder, longest: Tokens, *, is_whole: bool = False
) -> tuple[Floats, Floats]:
    """Logits, float32 (last tokens, vocabulary), of the longest text: read whole, and with the cache.

    Args:
        decoder: The decoder.
        longest: int64 (length,).
        is_whole: Do the first only and return it twice.
    """
    tokens = longest[None]
    mask = np.ones_like(tokens)
    start = max(1, len(longest) - DECODED)
    whole = Feed(tokens=tokens, mask=mask, positions=positions_of(mask))
    logits, _ = decoder.step(whole, decoder.empty(1), last=len(longest) - start + 1)
    if is_whole:
        return logits[0], logits[0]
    last, cache = prefill(decoder, tokens[:, :start], mask[:, :start])
    pieces: list[NDArray[np.float32]] = [last]
    for column in range(start, len(longest)):
        piece, cache = decoder.step(_column(tokens, mask, column), cache)
        pieces.append(piece)
    return logits[0], np.concatenate(pieces, axis=1)[0]


def _column(tokens: Tokens, mask: Tokens, column: int) -> Feed:
    return Feed(
        tokens=tokens[:, column : column + 1],
        mask=mask[:, : column + 1],
        positions=positions_of(mask[:, : column + 1])[:, -1:],
    )


def finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
