"""What a decoder takes beside its tokens: positions, and a cache that is still empty.

Samples are texts from their beginning on, so that nothing is in the cache yet; generation, which
fills it, is a check of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.sample_set import Tensor

POSITIONS: Final = "position_ids"
CACHE_PREFIX: Final = "past_key_values."
PRESENT_PREFIX: Final = "present."
MASK: Final = "attention_mask"
CACHE_POSITION: Final = "cache_position"
"""Of a decoder whose cache has a fixed length, int64 (1,): how many tokens it holds."""
TARGET_IDS: Final = "decoder_input_ids"
"""Of a sample of an encoder with a decoder: what the decoder reads."""
TARGET_AXIS: Final = "decoder_sequence"
SOURCE_MASK: Final = "encoder_attention_mask"


def is_cache(name: str) -> bool:
    """Whether an input is keys or values of the tokens before."""
    return name.startswith(CACHE_PREFIX)


def is_source(name: str) -> bool:
    """Whether an input of a decoder is of the source: its mask, or its keys and values."""
    return name == SOURCE_MASK or (is_cache(name) and ".encoder." in name)


def is_present(name: str) -> bool:
    """Whether an output is keys or values, (batch, heads, tokens, head size)."""
    return name.startswith(PRESENT_PREFIX)


def past_name(name: str) -> str:
    """Under which name the next step takes an output: `past_key_values.N.key` for `present.N.key`."""
    return CACHE_PREFIX + name.removeprefix(PRESENT_PREFIX)


def positions_of(mask: Tensor) -> Tensor:
    """The place of each token among those that are not masked, from 0 on; int64, as the mask.

    What `generate` of transformers feeds: tokens after padding on the left begin at 0, and masked
    ones before them are at 0 too.

    Args:
        mask: (..., sequence), 1 or 0.
    """
    places: Tensor = np.maximum(np.cumsum(mask, axis=-1) - 1, 0).astype(np.int64)
    return places


def is_prefix(mask: Tensor) -> bool:
    """Whether a mask, (sequence,), is ones and then zeros, and not zeros alone: a length says it all."""
    return bool(mask[0]) and bool((np.diff(mask) <= 0).all())


def completed(tokens: Mapping[str, Tensor], caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens with the positions and the empty cache that a decoder takes with them.

    Args:
        tokens: `input_ids` and `attention_mask`, int64 (sequence,).
        caches: Input name -> float32 (KV heads, 0, head size).
    """
    return {**tokens, POSITIONS: positions_of(tokens[MASK]), **caches}
