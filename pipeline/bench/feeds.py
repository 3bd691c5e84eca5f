"""Inputs of a wanted shape, cut from real samples.

Random token ids would do for most models, but not for all: the time of an embedding look-up, of a
dynamically quantised layer or of an early exit depends on the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Feeds: TypeAlias = dict[str, NDArray[np.int64]]

ATTENTION_MASK: Final = "attention_mask"


class TokenStream:
    """All tokens of all samples, one after the other, without padding.

    Args:
        path: `samples.safetensors` with int64 tensors `{input_name}/{index:06d}` of one axis.

    Raises:
        StageError: when the file does not hold such tensors.
    """

    def __init__(self, path: Path) -> None:
        self._streams = _read_streams(path)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that the samples have, the mask included."""
        return (*self._streams, ATTENTION_MASK)

    def cut(self, names: Iterable[str], shape: tuple[int, int], start: int) -> Feeds:
        """Inputs of one shape: the stream from `start` on, begun again when it ends.

        Args:
            names: The inputs that the model takes.
            shape: (batch, sequence).
            start: Any number; the same start gives the same tokens.

        Returns:
            Fresh int64 arrays (batch, sequence), C-contiguous; the mask is all ones.

        Raises:
            StageError: when the samples lack an input.
        """
        feeds: Feeds = {}
        for name in names:
            if name == ATTENTION_MASK:
                feeds[name] = np.ones(shape, dtype=np.int64)
                continue
            if name not in self._streams:
                raise StageError(
                    f"the samples have no input `{name}`; they have {', '.join(self.input_names)}"
                )
            stream = self._streams[name]
            places = (start + np.arange(shape[0] * shape[1])) % stream.size
            feeds[name] = stream[places].reshape(shape)
        return feeds


def _read_streams(path: Path) -> Feeds:
    from safetensors.numpy import load_file

    by_input: dict[str, dict[str, NDArray[np.int64]]] = {}
    for key, tensor in load_file(path).items():
        name, _, index = key.rpartition("/")
        if tensor.dtype != np.int64 or tensor.ndim != 1 or not name:
            raise StageError(
                f"sample `{key}` is {tensor.dtype} with {tensor.ndim} axes; needed are int64 "
                "tensors `input_name/index` of one axis",
                where=path.name,
            )
        by_input.setdefault(name, {})[index] = tensor
    masks = by_input.pop(ATTENTION_MASK, {})
    streams = {
        name: np.concatenate([_unpadded(samples[i], masks.get(i)) for i in sorted(samples)])
        for name, samples in by_input.items()
    }
    if not streams or min(stream.size for stream in streams.values()) == 0:
        raise StageError("the samples hold no tokens", where=path.name)
    return streams


def _unpadded(tokens: NDArray[np.int64], mask: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return tokens if mask is None else tokens[mask != 0]
