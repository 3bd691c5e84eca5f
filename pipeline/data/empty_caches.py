"""The cache of a text of which nothing was read yet, by what a checkpoint's `config.json` says."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import CACHE_PREFIX
from pipeline.data.json_files import read_json_object
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from pipeline.data.sample_set import Tensor


def empty_caches(checkpoint: Path) -> dict[str, Tensor]:
    """Input name -> float32 (KV heads, 0, head size), by what `config.json` says.

    Layers that read the keys and values of one before them (`num_kv_shared_layers`) have none.

    Raises:
        StageError: when it does not say how many layers and heads there are.
    """
    # Seconds; it knows the names that each family gives these.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as err:
        kind = read_json_object(checkpoint / "config.json").get("model_type")
        known = str(kind) in CONFIG_MAPPING
        raise StageError(
            f"transformers cannot read it: {' '.join(str(err).split())}"
            if known
            else f"transformers {version('transformers')} knows no model type `{kind}`",
            where="config.json",
            hint=""
            if known
            else "a newer transformers may know it; code that comes with a checkpoint (`auto_map`) is "
            "never run",
        ) from err

    layers = _size_of(config, "num_hidden_layers") - _size_of(config, "num_kv_shared_layers")
    # Of a model whose layers differ each has a config of its own (Gemma 4).
    views = config.per_layer_config if config.is_heterogeneous else [config] * layers
    shapes = [_cache_shape(view) for view in views[:layers]]
    if not shapes or not all(heads and width for heads, _, width in shapes):
        raise StageError(
            "it does not say how many layers, heads and numbers for each head the cache has",
            where="config.json",
            hint="`num_hidden_layers`, `num_attention_heads` and `hidden_size` are needed",
        )
    return {
        f"{CACHE_PREFIX}{layer}.{kind}": np.zeros(shape, dtype=np.float32)
        for layer, shape in enumerate(shapes)
        for kind in ("key", "value")
    }


def _size_of(config: PreTrainedConfig, name: str) -> int:
    size = getattr(config, name, None)
    return size if isinstance(size, int) and size > 0 else 0


def _cache_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """KV heads, 0 and head size of a layer; 0 where it is not said."""
    heads = _size_of(config, "num_attention_heads")
    width = _size_of(config, "head_dim")
    width = width or (_size_of(config, "hidden_size") // heads if heads else 0)
    return _shared_heads(config) or _size_of(config, "num_key_value_heads") or heads, 0, width


def _shared_heads(config: PreTrainedConfig) -> int:
    """KV heads of families that say them in their own words; 0 of all others.

    Source: `modeling_falcon.py` and `modeling_gpt_bigcode.py`, transformers 5.23.
    """
    if config.model_type == "falcon":
        if config.new_decoder_architecture:  # each is stored once for every head of queries
            return int(config.num_attention_heads)
        return 1 if config.multi_query else int(config.num_kv_heads)
    if config.model_type == "gpt_bigcode" and config.multi_query:
        return 1
    return 0
