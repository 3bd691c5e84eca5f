"""A decoder graph in ONNX Runtime, stepped with its cache."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import onnxruntime

from pipeline.data.decoder_inputs import CACHE_POSITION, MASK
from pipeline.errors import StageError
from pipeline.runtimes.decoder import (
    LOGITS,
    TOKEN_AXIS,
    TOKEN_INPUTS,
    Cache,
    Feed,
    Floats,
    Tokens,
    check_step,
    require_room,
)
from pipeline.runtimes.onnxruntime import ERRORS, OnnxRuntimeRunner, error_reason
from pipeline.runtimes.static_cache import (
    Filled,
    StaticCache,
    padded,
    room_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pipeline.runtimes.base import ModelTensor

KEEP: Final = "num_logits_to_keep"
"""An optional input: how many last tokens get logits; see `pipeline.graph.decoder_fusions.last_logits`."""

_PAST: Final = re.compile(r"past_key_values\.(.+)")


class OrtDecoder(OnnxRuntimeRunner):
    """A decoder graph in ONNX Runtime; what comes out as `present` is bound as `past` of the next step.

    Takes the arguments of `OnnxRuntimeRunner`. Every step has a binding of its own (ONNX Runtime 1.31
    writes to the same memory again when a binding is run twice), so caches are values: a step never
    changes the one that it was given. A static cache (`pipeline.runtimes.static_cache`) is bound as past
    and present at once and written behind the tokens that it holds; only where another step already went
    on from the same cache, its memory is copied first.
    """

    def __enter__(self) -> Self:
        """Load the graph.

        Raises:
            EnvironmentMissing: as `OnnxRuntimeRunner`.
            StageError: when ONNX Runtime refuses the graph, or it is no decoder with a cache.
        """
        super().__enter__()
        self._past: dict[str, tuple[ModelTensor, str]] = {}
        assert self._session is not None
        optional = {spec.name for spec in self._session.get_overridable_initializers()}
        self._keeps_last = KEEP in optional
        self._room = room_of(self._inputs)
        try:
            self._past = self._paired()
        except StageError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the session and its memory."""
        self._past = {}
        super().__exit__(kind, error, traceback)

    @property
    def cached(self) -> tuple[ModelTensor, ...]:
        """The inputs that hold the cache."""
        return tuple(spec for spec, _ in self._past.values())

    @property
    def room(self) -> int | None:
        """For how many tokens of a text there is room; None: as many as the model has positions."""
        return self._room

    @property
    def bytes_per_token(self) -> int:
        """Of the cache, for one token of one text: layers x 2 x heads x width x bytes of an element."""
        return sum(
            heads * width * np.dtype(spec.dtype).itemsize
            for spec in self.cached
            for heads, width in [_sizes(spec)]
        )

    def _paired(self) -> dict[str, tuple[ModelTensor, str]]:
        """Input of the cache -> its spec and the output that holds what comes next."""
        outputs = {spec.name for spec in self.outputs}
        found = {}
        problems = [] if LOGITS in outputs else [f"there is no output `{LOGITS}`"]
        for spec in self.inputs:
            match = _PAST.fullmatch(spec.name)
            if match is None:
                is_known = spec.name in TOKEN_INPUTS or (
                    spec.name == CACHE_POSITION and self._room
                )
                if not is_known:
                    problems.append(f"nothing is known of its input `{spec.name}`")
                continue
            present = f"present.{match[1]}"
            if present not in outputs:
                problems.append(f"`{spec.name}` has no output `{present}`")
            shape = spec.shape or ()
            if len(shape) != 4 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
                problems.append(f"`{spec.name}` is {spec}, not (batch, heads, past, width)")
            found[spec.name] = (spec, present)
        if not found:
            problems.append("no input is called `past_key_values.0.key`")
        if problems:
            raise StageError(
                f"the graph is no decoder with a key/value cache: {'; '.join(problems[:3])}",
                where=self._model.name,
            )
        return found

    def empty(self, rows: int) -> Cache:
        """The cache of `rows` texts of which nothing was read yet."""
        kind, number = self._device()
        values = {}
        for spec in self.cached:
            heads, width = _sizes(spec)
            values[spec.name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                [rows, heads, self._room or 0, width], np.dtype(spec.dtype), kind, number
            )
        return self._cache(rows, 0, values)

    def _cache(
        self, rows: int, length: int, values: dict[str, onnxruntime.OrtValue]
    ) -> Cache | StaticCache:
        if self._room is None:
            return Cache(rows=rows, length=length, values=values)
        return StaticCache(rows=rows, length=length, values=values, filled=Filled(tokens=length))

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        """As `Decoder.step`; keys and values are not copied."""
        if self._session is None:
            raise RuntimeError("OrtDecoder.step outside of its `with` block")
        check_step(feed, cache)
        binding, (kind, number) = self._session.io_binding(), self._device()
        for name, array in self._fed(feed, cache).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        cache = self._continued(cache)
        if last is not None and self._keeps_last:
            # `bind_cpu_input` looks among inputs without a default only (ONNX Runtime 1.31).
            keep = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([last], np.int64))
            binding.bind_ortvalue_input(KEEP, keep)
        for name, value in cache.values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(LOGITS, "cpu")
        for name, (_, present) in self._past.items():
            if self._room is not None:
                binding.bind_ortvalue_output(present, cache.values[name])
            else:
                binding.bind_output(present, kind, number)
        try:
            self._session.run_with_iobinding(binding)
        except (*ERRORS, RuntimeError) as err:
            raise StageError(
                f"ONNX Runtime cannot run the graph on {cache.rows} texts of {feed.tokens.shape[1]} "
                f"tokens behind {cache.length}: {error_reason(err)}",
                where=self._model.name,
            ) from err
        binding.synchronize_outputs()
        logits, *made = binding.get_outputs()
        after = replace(
            cache,
            length=feed.mask.shape[1],
            values=dict(zip(self._past, made, strict=True))
            if self._room is None
            else cache.values,
        )
        if isinstance(after, StaticCache):
            after.filled.tokens = after.length
        self._check_length(after)
        seen = np.from_dlpack(logits)
        seen = seen if last is None else seen[:, -last:]
        return seen.astype(np.float32), after  # a copy: the memory is ONNX Runtime's

    def _fed(self, feed: Feed, cache: Cache) -> dict[str, Tokens]:
        """What the graph takes of a feed, and for a static cache where the tokens go."""
        fed: dict[str, Tokens] = feed.named()
        if self._room is not None:
            require_room(feed.mask.shape[1], self._room)
            fed[MASK] = padded(feed.mask, 1, self._room)
            fed[CACHE_POSITION] = np.array([cache.length], np.int64)
        taken = {spec.name for spec in self.inputs}
        return {name: array for name, array in fed.items() if name in taken}

    def _continued(self, cache: Cache) -> Cache:
        """The cache; a static one in memory of its own where another step went on from it already."""
        if isinstance(cache, StaticCache) and cache.filled.tokens != cache.length:
            return self.reorder(cache, range(cache.rows))
        return cache

    def _check_length(self, cache: Cache) -> None:
        """Another step would take a cache of the wrong length for one of another past.

        Raises:
            StageError: when the graph leaves more or fewer keys or values than it was given tokens.
        """
        for name, value in cache.values.items():
            shape = value.shape()
            if shape[0] != cache.rows or shape[TOKEN_AXIS] != (self._room or cache.length):
                raise StageError(
                    f"`{self._past[name][1]}` is {list(shape)} behind {cache.length} tokens of "
                    f"{cache.rows} texts",
                    where=self._model.name,
                )

    def reorder(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """As `Decoder.reorder`; by way of the host's memory."""
        kind, number = self._device()
        values = {}
        for name, value in cache.values.items():
            array = np.from_dlpack(value) if kind == "cpu" else value.numpy()
            chosen = np.empty((len(rows), *array.shape[1:]), array.dtype)
            chosen[:, :, : cache.length] = array[list(rows), :, : cache.length]
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(chosen, kind, number)
        return self._cache(len(rows), cache.length, values)

    def read(self, cache: Cache) -> dict[str, Floats]:
        """As `Decoder.read`."""
        return {
            name: value.numpy()[:, :, : cache.length].astype(np.float32)
            for name, value in cache.values.items()
        }


def _sizes(spec: ModelTensor) -> tuple[int, int]:
    """Key/value heads and the width of one; `_paired` has made sure that they are numbers."""
    assert spec.shape is not None
    heads, width = spec.shape[1], spec.shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    return heads, width
