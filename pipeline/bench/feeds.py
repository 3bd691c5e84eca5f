"""Inputs of a wanted shape, made of real samples.

Random token ids would do for most models, but not for all: the time of an embedding look-up, of a
dynamically quantised layer or of an early exit depends on the tokens.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decoder_inputs import POSITIONS, is_cache, is_source
from pipeline.data.sample_set import INDEX_FILE, TENSOR_FILE
from pipeline.errors import StageError
from pipeline.tasks import ENCODER_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.bench.types import Shape
    from pipeline.data.sample_set import SampleSet

Feeds: TypeAlias = dict[str, NDArray[Any]]

ATTENTION_MASK: Final = "attention_mask"


class SampleStream:
    """The samples one after the other, without padding and without an end.

    What is taken from a sample is decided by the named axes of an input. Tokens (`sequence`, or
    `num_choices` and `sequence`) flow on from one sample to the next, so that every shape can be
    filled; an input whose axes are all of fixed size, such as an image, is taken whole.

    Args:
        samples: An open sample set with at least one sample. It is read when inputs are cut, and
            only as far as they need it.
        axes: Names of the axes whose sizes a shape gives, the batch first.

    Raises:
        StageError: when there are no samples.
    """

    def __init__(self, samples: SampleSet, axes: tuple[str, ...]) -> None:
        if not len(samples):
            raise StageError("there are no samples to measure with", where=INDEX_FILE)
        self._samples = samples
        self._axes = axes

    def cut(self, names: Iterable[str], shape: Shape, start: int) -> Feeds:
        """Inputs of one shape, from sample `start` on; after the last sample comes the first.

        Args:
            names: The inputs that the model takes.
            shape: The size of each axis.
            start: Any number; the same start gives the same inputs.

        Returns:
            Fresh C-contiguous arrays: int64 (batch, sequence) or (batch, num_choices, sequence)
            for tokens, with masks of ones; float32 (batch, channels, height, width) for images.

        Raises:
            StageError: when the samples lack an input, hold none of its tokens, or when it has a
                named axis that a shape gives no size for.
        """
        return {name: self._cut(name, shape, start % len(self._samples)) for name in names}

    def _cut(self, name: str, shape: Shape, start: int) -> NDArray[Any]:
        if is_source(name):
            return self._source(name, shape, start)
        if is_cache(name):
            # A text from its beginning on: the whole shape is prefill.
            return self._empty_cache(name, shape[0], start)
        free = self._free_axes(name)
        sizes = dict(zip(self._axes, shape, strict=True))
        wanted = (shape[0], *(sizes[axis] for axis in free))
        if name == POSITIONS:
            return np.broadcast_to(np.arange(wanted[-1]), wanted).copy()
        if name == ATTENTION_MASK:
            # Every position holds a token, whatever was padded in the sample.
            return np.ones(wanted, dtype=self._samples.index.inputs[name].dtype)
        count = math.prod(wanted)
        elements = self._take(name, free, count, start)
        if len(elements) < count:
            # Begins again where the elements end.
            elements = np.resize(elements, (count, *elements.shape[1:]))
        return elements[:count].reshape(*wanted, *elements.shape[1:])

    def _empty_cache(self, name: str, batch: int, start: int) -> NDArray[Any]:
        tensor = self._samples.read([start])[0][name]
        return np.zeros((batch, *tensor.shape), dtype=tensor.dtype)

    def _source(self, name: str, shape: Shape, start: int) -> NDArray[Any]:
        """Of a decoder behind an encoder: one sample's source for all rows, as long as the target.

        Where its length is fixed, as of sounds, it stays. All of it is looked at.
        """
        tensor = self._samples.read([start])[0][name]
        length = dict(zip(self._axes, shape, strict=True))[SEQUENCE_AXIS]
        axes = self._samples.index.inputs[name].axes
        if ENCODER_AXIS in axes:
            axis = axes.index(ENCODER_AXIS)
            tensor = np.take(tensor, np.arange(length) % tensor.shape[axis], axis=axis)
        if not is_cache(name):
            tensor = np.ones_like(tensor)
        return np.ascontiguousarray(np.broadcast_to(tensor, (shape[0], *tensor.shape)))

    def _free_axes(self, name: str) -> tuple[str, ...]:
        """The named axes of one sample; those of fixed size come behind them."""
        inputs = self._samples.index.inputs
        if name not in inputs:
            known = ", ".join(sorted(inputs))
            raise StageError(f"the samples have no input `{name}`; they have {known}")
        axes = inputs[name].axes
        free = tuple(axis for axis in axes if axis is not None)
        if axes[: len(free)] != free or not set(free) <= set(self._axes[1:]):
            shown = ", ".join("fixed" if axis is None else axis for axis in axes)
            raise StageError(
                f"input `{name}` cannot be cut to a shape: a sample has the axes ({shown}), a "
                f"shape gives sizes for ({', '.join(self._axes)})",
                where=INDEX_FILE,
            )
        return free

    def _take(self, name: str, free: tuple[str, ...], count: int, start: int) -> NDArray[Any]:
        """At least `count` elements from sample `start` on, or those of all samples.

        An element is what is left of a tensor without its free axes: a token, an image.
        """
        total = len(self._samples)
        places = deque((start + step) % total for step in range(total))
        taken: list[NDArray[Any]] = []
        found = 0
        while found < count and places:
            chosen, expected = [], found
            while expected < count and places:
                extents = self._samples.entries[places[0]].extents
                expected += math.prod(extents.get(axis, 1) for axis in free)
                chosen.append(places.popleft())
            # Padding may leave fewer elements than expected; then there is another turn.
            for sample in self._samples.read(chosen):
                taken.append(_elements(sample, name, len(free)))
                found += len(taken[-1])
        if not found:
            raise StageError(f"the samples hold nothing for input `{name}`", where=INDEX_FILE)
        sizes = {elements.shape[1:] for elements in taken}
        if len(sizes) > 1:
            shown = " and ".join(str(list(size)) for size in sorted(sizes)[:2])
            raise StageError(f"samples differ in size: `{name}` is {shown}", where=TENSOR_FILE)
        return np.concatenate(taken)


def _elements(sample: dict[str, NDArray[Any]], name: str, free: int) -> NDArray[Any]:
    """(elements, ...): a sample's tensor with its first `free` axes as one, padding left out."""
    tensor, mask = sample[name], sample.get(ATTENTION_MASK)
    if not free or mask is None:
        return tensor.reshape(-1, *tensor.shape[free:])
    if mask.shape != tensor.shape[:free]:
        raise StageError(
            f"`{name}` is {list(tensor.shape)}, but its mask is {list(mask.shape)}",
            where=TENSOR_FILE,
        )
    kept: NDArray[Any] = tensor[mask != 0]
    return kept
