"""Which decoders cannot be run with a cache of keys and values, as far as `config.json` tells.

Only what is certain is refused here, before anything runs; whether any other model keeps such a cache
is found out by running it once, when it is exported. The tables are held against the installed
`transformers` by a test.
Source: `_is_stateful`, `forward` and `config_class` of the classes that
`transformers.AutoModelForCausalLM` loads, transformers 5.23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError
from pipeline.source.traced_decoders import trace_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.tasks import Task

# fmt: off
STATES: Final = frozenset({
    "bailing_hybrid", "bamba", "deepseek_v4", "falcon_h1", "falcon_mamba", "granitemoehybrid",
    "jamba", "kimi_linear", "mamba", "mamba2", "nemotron_h", "olmo_hybrid", "qwen3_5",
    "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp",
    "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya",
})
"""Model types with layers that keep a state, and not the keys and values of every token."""

NO_CACHE: Final = frozenset({
    "gemma4_assistant", "gemma4_unified_assistant", "openai-gpt", "reformer", "xlm", "xlnet",
})
"""Model types whose `forward` takes no `past_key_values`."""

NO_POSITIONS: Final = frozenset({
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "bloom", "cpmant", "marian",
    "mbart", "moss_transcribe_diarize", "mpt", "musicgen", "musicgen_melody", "mvp", "pegasus",
    "plbart", "prophetnet", "roformer", "trocr", "whisper",
})
"""Model types whose `forward` takes a cache and no `position_ids`, so that texts cannot be padded."""

ENCODERS: Final = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})
"""Model types that look at later tokens too, and keep no cache, unless `is_decoder` is true."""

STATE_LAYERS: Final = frozenset({
    "conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent",
})
"""Entries of `layer_types` that stand for a layer with a state."""

# fmt: on

_HINT: Final = "models with states (Mamba), linear attention or no cache cannot be converted"


def check_keeps_cache(config: Mapping[str, object], task: Task) -> None:
    """Refuse a decoder that cannot become one graph with the keys and values of every token.

    Args:
        config: The checkpoint's `config.json`.
        task: What the recipe asks for; only decoders alone are looked at.

    Raises:
        RecipeError: saying what its layers keep in place of them, or what cannot be traced.
    """
    if not task.has_cache or task.parts:
        return
    kind, name = str(config.get("model_type")), f"a `{config.get('model_type')}` model"
    if reason := _reason(kind, config):
        raise RecipeError(
            f"{name} {reason}, and task `{task.name}` needs the keys and values of every token in "
            "every layer",
            hint=_HINT,
        )
    if kind in NO_POSITIONS:
        raise RecipeError(
            f"{name} takes no `position_ids` as a decoder, so that texts of different lengths could not "
            "stand in one batch",
            hint="models such as GPT-2, Llama, Mistral, Qwen, Gemma, Phi, OPT and GPT-NeoX take them",
        )
    if fault := trace_fault(config):
        raise RecipeError(
            f"this `{kind}` model {fault}",
            hint="dense models can be converted, such as most of Llama, Mistral, Qwen, Gemma and Phi",
        )


def _reason(kind: str, config: Mapping[str, object]) -> str:
    """What it keeps in place of keys and values; empty when nothing is known against it."""
    inner = config.get("text_config")
    types = (inner if isinstance(inner, dict) else config).get("layer_types")
    if isinstance(types, list):  # tells more than the family: some have members without states
        states = sorted({str(each) for each in types} & STATE_LAYERS)
        if states:
            return f"has layers that keep a state (`layer_types`: {', '.join(states)})"
    elif kind in STATES:
        return "has layers that keep a state"
    if kind in NO_CACHE:
        return "takes no cache of keys and values"
    if kind in ENCODERS and config.get("is_decoder") is not True:
        return "keeps no cache, as config.json says no `is_decoder: true`"
    return ""
