"""A decoder behind an encoder, stepped with its cache: the source's keys and values stay as they are.

Encoder and decoder are runners (`pipeline.runtimes.base`), of graphs or of the checkpoint in torch, with
the names of `pipeline.runtimes.torch_seq2seq`. A `SourcedDecoder` is bound to some sources and can then
be stepped by the loop of `pipeline.runtimes.generation` as any decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.data.decoder_inputs import is_cache, past_name
from pipeline.errors import StageError
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.decoder import LOGITS, TOKEN_AXIS, Cache, Feed, Floats, check_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.runtimes.base import Array, ModelTensor, Runner

IDS: Final = "input_ids"
MASK: Final = "attention_mask"
SOURCE_MASK: Final = "encoder_attention_mask"
STATES: Final = "last_hidden_state"


class SourcedDecoder:
    """Implements `pipeline.runtimes.decoder.Decoder` for a batch of sources, which is encoded once.

    The cache holds what depends on a row: the decoder's own keys and values, those of the source, and
    the source's mask. Only the first of these grow.

    Args:
        encoder, decoder: Loaded; they may be run by others too.
        sources: What the encoder takes, with a batch axis, such as int64 (rows, source length).

    Raises:
        FeedError: when the two do not fit each other, or the sources do not fit the encoder.
        StageError: when the encoder cannot be run.
    """

    def __init__(self, encoder: Runner, decoder: Runner, sources: Mapping[str, Array]) -> None:
        self._decoder = decoder
        found = encoder.run({spec.name: sources[spec.name] for spec in encoder.inputs})
        self._crossed = {past_name(name): a for name, a in found.items() if name != STATES}
        self._rows = len(next(iter(sources.values())))
        taken = {spec.name: spec for spec in decoder.inputs}
        if SOURCE_MASK in taken:
            self._crossed[SOURCE_MASK] = sources[MASK]
        self._own = [
            spec for name, spec in taken.items() if is_cache(name) and name not in self._crossed
        ]
        absent = [name for name in self._crossed if name not in taken]
        lacking = [past_name(s.name) for s in decoder.outputs if s.name != LOGITS]
        lacking = sorted({spec.name for spec in self._own}.symmetric_difference(lacking))
        if absent or lacking:
            raise FeedError(
                f"encoder and decoder do not fit: `{(absent or lacking)[0]}` is "
                + ("given and not taken" if absent else "not among what the other has")
            )

    @property
    def bytes_per_token(self) -> int:
        """Of the decoder's own cache, for one token of one text."""
        return sum(
            heads * width * np.dtype(spec.dtype).itemsize
            for spec in self._own
            for heads, width in [_sizes(spec)]
        )

    @property
    def source_bytes(self) -> int:
        """Of keys and values of one source, which do not grow."""
        held = sum(array.nbytes for name, array in self._crossed.items() if is_cache(name))
        return held // self._rows

    def empty(self, rows: int) -> Cache:
        """The cache of targets of which nothing was read yet; one row for each source.

        Raises:
            FeedError: when there are not so many sources.
        """
        if rows != self._rows:
            raise FeedError(f"{rows} texts are to be written for {self._rows} sources")
        own = {
            spec.name: np.zeros((rows, heads, 0, width), np.dtype(spec.dtype))
            for spec in self._own
            for heads, width in [_sizes(spec)]
        }
        return Cache(rows=rows, length=0, values={**self._crossed, **own})

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        """As `Decoder.step`.

        Raises:
            FeedError: when shapes do not fit, or tokens are masked: no input of the graph says so.
            StageError: when it cannot be run, or leaves a cache of another length.
        """
        check_step(feed, cache)
        if not feed.mask.all():
            raise FeedError("tokens of a decoder behind an encoder cannot be masked")
        found = self._decoder.run({IDS: np.ascontiguousarray(feed.tokens), **cache.values})
        logits: Floats = found[LOGITS].astype(np.float32)
        own = {past_name(name): array for name, array in found.items() if name != LOGITS}
        length = feed.mask.shape[1]
        for name, array in own.items():
            if array.shape[0] != cache.rows or array.shape[TOKEN_AXIS] != length:
                raise StageError(
                    f"what comes out for `{name}` is {list(array.shape)} behind {length} tokens of "
                    f"{cache.rows} texts"
                )
        after = Cache(rows=cache.rows, length=length, values={**cache.values, **own})
        return (logits if last is None else logits[:, -last:]), after

    def reorder(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """As `Decoder.reorder`; the sources go with their texts."""
        values = {
            name: np.ascontiguousarray(array[list(rows)]) for name, array in cache.values.items()
        }
        return Cache(rows=len(rows), length=cache.length, values=values)

    def read(self, cache: Cache) -> dict[str, Floats]:
        """As `Decoder.read`, of the decoder's own keys and values."""
        return {
            spec.name: cache.values[spec.name].astype(np.float32, copy=True) for spec in self._own
        }


def _sizes(spec: ModelTensor) -> tuple[int, int]:
    """Heads and the width of one.

    Raises:
        FeedError: when the decoder leaves them open.
    """
    shape = spec.shape or ()
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        raise FeedError(f"input `{spec}` is no cache: (batch, heads, past, head size) is needed")
    return shape[1], shape[3]
