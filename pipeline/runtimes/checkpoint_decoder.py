"""The checkpoint in torch as a decoder, stepped like a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import StageError
from pipeline.runtimes.decoder import Cache, Feed, Floats, check_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.runtimes.torch_model import TorchComponent


class CheckpointDecoder:
    """Implements `pipeline.runtimes.decoder.Decoder` with a component of task `text-generation`.

    Args:
        loaded: What `load_torch_model` gave.
    """

    def __init__(self, loaded: TorchComponent) -> None:
        self._loaded = loaded
        taken = {taken.spec.name: taken.shape for taken in loaded.takes}
        self._past = {
            name: (shape[1], shape[3])
            for name, shape in taken.items()
            if name.startswith("past_key_values.")
        }

    def empty(self, rows: int) -> Cache:
        """The cache of texts of which nothing was read yet."""
        values = {
            name: torch.zeros(rows, int(heads), 0, int(width))
            for name, (heads, width) in self._past.items()
        }
        return Cache(rows=rows, length=0, values=values)

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        """As `Decoder.step`."""
        check_step(feed, cache)
        fed = {name: torch.from_numpy(np.array(array)) for name, array in feed.named().items()}
        fed |= cache.values
        try:
            with torch.inference_mode():
                found = self._loaded.module(*(fed[name] for name in self._loaded.input_names))
        except (IndexError, RuntimeError, TypeError, ValueError) as err:
            reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
            raise StageError(
                f"torch cannot run the checkpoint on {cache.rows} texts of {feed.tokens.shape[1]} "
                f"tokens behind {cache.length}: {reason}"
            ) from err
        outputs = dict(zip(self._loaded.output_names, found, strict=True))
        values = {name: outputs[name.replace("past_key_values", "present")] for name in self._past}
        logits = outputs["logits"] if last is None else outputs["logits"][:, -last:]
        after = Cache(rows=cache.rows, length=feed.mask.shape[1], values=values)
        return logits.to(torch.float32).numpy(), after

    def reorder(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """As `Decoder.reorder`."""
        values = {name: value[list(rows)] for name, value in cache.values.items()}
        return Cache(rows=len(rows), length=cache.length, values=values)

    def read(self, cache: Cache) -> dict[str, Floats]:
        """As `Decoder.read`."""
        return {
            name: value.to(torch.float32).numpy().copy() for name, value in cache.values.items()
        }
