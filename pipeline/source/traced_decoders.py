"""Which decoders torch cannot write down as a graph with a cache, as far as `config.json` tells.

As `cached_decoders`, only what is certain is refused here; any other model is tried. Without this a build
would run the checkpoint for hours before its export fails.
Source: torch 2.13 and transformers 5.23; the table of experts is held against the latter by a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.source.rope import layers_that_differ

if TYPE_CHECKING:
    from collections.abc import Mapping

# fmt: off
EXPERTS: Final = frozenset({
    "afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1", "dots3_note", "dots3_note_text",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "gemma4", "gemma4_text", "glm4_moe",
    "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling2_text", "inkling_text",
    "jamba", "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "mellum", "mimo_v2_flash", "minimax",
    "minimax_m2", "minimax_m3_vl_text", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen4_exp", "qwen4_exp_text",
    "solar_open", "zaya",
})
"""Model types that may have experts, whose products transformers groups by an operator of its own."""
# fmt: on

EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""How `config.json` says how many there are; some of these types have members without any."""


def trace_fault(config: Mapping[str, object]) -> str:
    """Why it cannot be traced, as the end of a sentence about the model; empty when it may be.

    Args:
        config: The checkpoint's `config.json`.
    """
    kind = config.get("model_type")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    if kind in EXPERTS and any(_is_many(text.get(key)) for key in EXPERT_COUNTS):
        return "is a mixture of experts, whose products have no translation to ONNX"
    if rope := layers_that_differ(text):
        return (
            f"has rotary embeddings of type `{rope}` in some layers and others in the rest, and their "
            "frequencies change with the length of the text"
        )
    if kind == "falcon" and config.get("alibi") is True:
        return (
            "has `alibi: true`, positions that are counted from the mask, which cannot be traced"
        )
    if kind == "gpt_neo":
        return "cuts its mask out of a table of fixed size, which cannot be traced with a cache"
    if kind == "llama4_text":
        return "masks its tokens in chunks, which cannot be traced with a cache"
    return ""


def _is_many(count: object) -> bool:
    return type(count) is int and count > 1
