"""A decoder graph without a cache in ONNX Runtime: what was read is kept here, and read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import positions_of
from pipeline.runtimes.decoder import LOGITS, Cache, Feed, Floats, check_step
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = "tokens"


class OrtCachelessDecoder(OnnxRuntimeRunner):
    """A graph of tokens to logits that can be stepped like one with a cache; takes what that takes."""

    bytes_per_token = 0
    """There is no cache."""

    def empty(self, rows: int) -> Cache:
        """Texts of which nothing was read yet."""
        return Cache(rows=rows, length=0, values={_TOKENS: np.zeros((rows, 0), np.int64)})

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        """As `Decoder.step`; everything is read again."""
        check_step(feed, cache)
        tokens = np.concatenate([cache.values[_TOKENS], feed.tokens], axis=1)
        whole = Feed(tokens=tokens, mask=feed.mask, positions=positions_of(feed.mask))
        taken = {spec.name for spec in self.inputs}
        fed = {name: array for name, array in whole.named().items() if name in taken}
        logits = self.run(fed, [LOGITS])[LOGITS]
        kept = last if last is not None else feed.tokens.shape[1]
        after = Cache(rows=cache.rows, length=tokens.shape[1], values={_TOKENS: tokens})
        return logits[:, logits.shape[1] - kept :].astype(np.float32), after

    def reorder(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """As `Decoder.reorder`."""
        tokens = cache.values[_TOKENS][list(rows)]
        return Cache(rows=len(rows), length=cache.length, values={_TOKENS: tokens})

    def read(self, cache: Cache) -> dict[str, Floats]:
        """Nothing: no keys and values come out of the graph."""
        del cache
        return {}
