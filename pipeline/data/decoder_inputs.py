"""What a decoder takes beside its tokens: positions, and a cache that is still empty.

Samples are texts from their beginning on, so that nothing is in the cache yet; generation, which
fills it, is a check of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.sample_set import Tensor

POSITIONS: Final = "position_ids"
CACHE_PREFIX: Final = "past_key_values."
MASK: Final = "attention_mask"


def is_cache(name: str) -> bool:
    """Whether an input is keys or values of the tokens before."""
    return name.startswith(CACHE_PREFIX)


def positions_of(mask: Tensor) -> Tensor:
    """The place of each token among those that are not masked, from 0 on; int64, as the mask.

    What `generate` of transformers feeds: tokens after padding on the left begin at 0, and masked
    ones before them are at 0 too.

    Args:
        mask: (..., sequence), 1 or 0.
    """
    places: Tensor = np.maximum(np.cumsum(mask, axis=-1) - 1, 0).astype(np.int64)
    return places


def empty_caches(checkpoint: Path) -> dict[str, Tensor]:
    """Input name -> float32 (KV heads, 0, head size), by what `config.json` says.

    Raises:
        StageError: when it does not say how many layers and heads there are.
    """
    from transformers import AutoConfig  # seconds; it knows the names that each family gives these

    try:
        config = AutoConfig.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise StageError(f"transformers cannot read it: {err}", where="config.json") from err

    def size_of(name: str) -> int:
        size = getattr(config, name, None)
        return size if isinstance(size, int) and size > 0 else 0

    layers, heads = size_of("num_hidden_layers"), size_of("num_attention_heads")
    shared = size_of("num_key_value_heads") or heads
    width = size_of("head_dim") or (size_of("hidden_size") // heads if heads else 0)
    if not (layers and shared and width):
        raise StageError(
            "it does not say how many layers, heads and numbers for each head the cache has",
            where="config.json",
            hint="`num_hidden_layers`, `num_attention_heads` and `hidden_size` are needed",
        )
    return {
        f"{CACHE_PREFIX}{layer}.{kind}": np.zeros((shared, 0, width), dtype=np.float32)
        for layer in range(layers)
        for kind in ("key", "value")
    }


def completed(tokens: Mapping[str, Tensor], caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens with the positions and the empty cache that a decoder takes with them.

    Args:
        tokens: `input_ids` and `attention_mask`, int64 (sequence,).
        caches: As `empty_caches` has them.
    """
    return {**tokens, POSITIONS: positions_of(tokens[MASK]), **caches}
