"""A decoder graph with its key/value cache: one step after another, the cache stays where it is.

The graph has the names of Optimum and transformers.js: `input_ids`, `attention_mask` (as long as past and
new tokens together), `position_ids`, `past_key_values.N.key` and so on -> `logits`, `present.N.key` and so
on, with any past from 0 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes.base import FeedError

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]

LOGITS: Final = "logits"
TOKEN_INPUTS: Final = ("input_ids", "attention_mask", "position_ids")
TOKEN_AXIS: Final = 2
"""Of a cached tensor: (batch, key/value heads, tokens, width of a head)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
        rows: How many texts.
        length: How many tokens of each, padding included.
        values: Input name -> tensor (rows, heads, length, width), in whatever the decoder keeps them.
    """

    rows: int
    length: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What one step reads beside the cache.

    Attributes:
        tokens: int64 (rows, sequence).
        mask: int64 (rows, past + sequence): 1 for tokens, 0 for padding.
        positions: int64 (rows, sequence).
    """

    tokens: Tokens
    mask: Tokens
    positions: Tokens

    def named(self) -> dict[str, Tokens]:
        """By the names of the graph's inputs."""
        return dict(zip(TOKEN_INPUTS, (self.tokens, self.mask, self.positions), strict=True))


class Decoder(Protocol):
    """What makes logits of tokens and remembers them: a graph, or the checkpoint itself."""

    def empty(self, rows: int) -> Cache:
        """The cache of texts of which nothing was read yet."""

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        """Logits, float32 (rows, sequence or `last`, vocabulary), and the cache with the new tokens.

        The cache that is given stays as it is and can be used again.

        Args:
            feed: The new tokens.
            cache: What was read so far.
            last: Copy the logits of so many last tokens only; None: of all.

        Raises:
            FeedError: when shapes do not fit the cache.
            StageError: when it cannot be run.
        """

    def reorder(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """A cache whose row i is row `rows[i]` of another; rows may come twice or not at all."""

    def read(self, cache: Cache) -> dict[str, Floats]:
        """Copies of the cached tensors, float32, by the names of the graph's inputs."""


def check_step(feed: Feed, cache: Cache) -> None:
    """Shapes of what is fed against each other and the cache.

    Raises:
        FeedError: naming what does not fit.
    """
    shape = (cache.rows, feed.tokens.shape[-1])
    whole = (cache.rows, cache.length + shape[1])
    for name, array, wanted in zip(
        TOKEN_INPUTS,
        (feed.tokens, feed.mask, feed.positions),
        (shape, whole, shape),
        strict=True,
    ):
        if array.shape != wanted:
            raise FeedError(
                f"`{name}` has shape {list(array.shape)}; with {cache.length} tokens of {cache.rows} "
                f"texts in the cache it must be {list(wanted)}"
            )


def require_room(tokens: int, room: int | None) -> None:
    """Refuse texts that are longer than a static cache.

    Args:
        tokens: Of the longest, padding included.
        room: Of the cache; None: it grows.

    Raises:
        FeedError: when they are.
    """
    if room is not None and tokens > room:
        raise FeedError(
            f"texts of {tokens} tokens, padding included, do not fit into the static cache of {room}",
            hint=f"ask for {tokens - room} tokens fewer, or build with `static_cache: "
            f"{{length: {tokens}}}` or more",
        )
