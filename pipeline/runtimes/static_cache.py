"""Decoder graphs whose cache has a fixed length and is written in place (`pipeline.graph.static_cache`).

Who steps through a text binds the same memory as past and present (`OrtDecoder`). Who runs a text at once,
as comparisons do, feeds such a graph like one whose cache grows: `CacheRunner`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.data.decoder_inputs import CACHE_POSITION, MASK, is_cache, is_present
from pipeline.runtimes.base import ModelTensor, check_feeds
from pipeline.runtimes.decoder import TOKEN_AXIS, Cache, require_room
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.tasks import BATCH_AXIS, PAST_AXIS, TOTAL_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.runtimes.base import Array


@dataclass(slots=True, kw_only=True)
class Filled:
    """How many tokens memory holds that several caches may share: the longest of them."""

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticCache(Cache):
    """A cache in memory of a fixed length; what it holds itself is never written to again.

    Attributes:
        filled: Shared with the caches of earlier and later steps in the same memory. Where it is ahead,
            another step went on from here: memory must be copied before the next one does.
    """

    filled: Filled


def room_of(inputs: Sequence[ModelTensor]) -> int | None:
    """For how many tokens of a text there is room; None for a cache that grows."""
    if all(spec.name != CACHE_POSITION for spec in inputs):
        return None
    lengths = {
        spec.shape[TOKEN_AXIS] if spec.shape and len(spec.shape) == 4 else None
        for spec in inputs
        if is_cache(spec.name)
    }
    length = next(iter(lengths), None)
    return length if len(lengths) == 1 and isinstance(length, int) else None


def padded(array: Array, axis: int, room: int) -> Array:
    """An array with zeros behind its axis, up to `room`."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, room - array.shape[axis])
    return np.pad(array, widths)


def fit_feeds(feeds: Mapping[str, Array], room: int) -> dict[str, Array]:
    """What a graph with a static cache is fed in place of what one takes whose cache grows.

    Args:
        feeds: With `attention_mask` (batch, past + sequence) and `past_key_values.N.*`, (batch, heads,
            past, width).
        room: Tokens of the static cache.

    Raises:
        FeedError: when there are more tokens than that.
    """
    require_room(feeds[MASK].shape[1], room)
    # A part of a graph may take no cache: of a text from its beginning on.
    past = next((array.shape[TOKEN_AXIS] for name, array in feeds.items() if is_cache(name)), 0)
    fitted = dict(feeds)
    fitted[CACHE_POSITION] = np.array([past], np.int64)
    fitted[MASK] = padded(feeds[MASK], 1, room)
    for name, array in feeds.items():
        if is_cache(name):
            fitted[name] = padded(array, TOKEN_AXIS, room)
    return fitted


class CacheRunner(OnnxRuntimeRunner):
    """An ONNX graph of any kind; one with a static cache takes and gives what one does that grows.

    Takes the arguments of `OnnxRuntimeRunner`.
    """

    _room: int | None = None

    def __enter__(self) -> Self:
        """Load the graph; raises as `OnnxRuntimeRunner`."""
        super().__enter__()
        if self._room is None:
            self._room = room_of(self._inputs)
        elif not any(name == CACHE_POSITION or is_cache(name) for name in self._taken):
            self._room = None
        return self

    def part_of(self, whole: CacheRunner) -> Self:
        """Say of which loaded graph this is a part: alone its inputs do not tell what its cache is."""
        self._room = whole._room
        return self

    @property
    def _taken(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self._inputs)

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        """What must be fed; with a static cache the mask always, which says how many tokens there are."""
        if self._room is None:
            return self._inputs
        fed = tuple(_as_fed(spec) for spec in self._inputs if spec.name != CACHE_POSITION)
        if any(spec.name == MASK for spec in fed):
            return fed
        # A part of a graph may take its cache and no mask.
        return (*fed, ModelTensor(name=MASK, dtype="int64", shape=(BATCH_AXIS, TOTAL_AXIS)))

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """What comes out."""
        if self._room is None:
            return self._outputs
        return tuple(
            _grown(spec, TOKEN_AXIS, TOTAL_AXIS) if is_present(spec.name) else spec
            for spec in self._outputs
        )

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """As `OnnxRuntimeRunner.run`.

        Raises:
            FeedError: also when texts are longer than the cache.
            StageError: when the run fails.
        """
        if self._room is None:
            return super().run(feeds, names)
        check_feeds(self.inputs, feeds, self._model.name)
        fitted = fit_feeds(feeds, self._room)
        fitted = {name: array for name, array in fitted.items() if name in self._taken}
        found = super().run(fitted, names)
        total = feeds[MASK].shape[1]
        return {
            name: array[:, :, :total] if is_present(name) else array
            for name, array in found.items()
        }


def _as_fed(spec: ModelTensor) -> ModelTensor:
    if is_cache(spec.name):
        return _grown(spec, TOKEN_AXIS, PAST_AXIS)
    return _grown(spec, 1, TOTAL_AXIS) if spec.name == MASK else spec


def _grown(spec: ModelTensor, axis: int, name: str) -> ModelTensor:
    if spec.shape is None:
        return spec
    shape = list(spec.shape)
    shape[axis] = name
    return replace(spec, shape=tuple(shape))
