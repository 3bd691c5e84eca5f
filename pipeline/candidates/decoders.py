"""What a decoder from elsewhere takes and gives: tokens, and keys and values of those before them.

Known are the names that Optimum, transformers.js and ONNX Runtime GenAI write: `past_key_values.N.key`
goes in, `present.N.key` comes out, each (batch, heads, tokens, width). Sizes that `config.json` of the
checkpoint says are compared here, so that a graph of another model is refused before anything runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.candidates.matching import (
    POSITIONS,
    adopted_input,
    adopted_outputs,
    pair,
    require_known,
)
from pipeline.candidates.names import listed, quoted
from pipeline.candidates.records import AdoptedCache, Interface, SuppliedInput
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.graph.model_facts import ModelFacts, TensorFacts
    from pipeline.tasks import Task

MERGED: Final = "use_cache_branch"
"""The input by which Optimum's merged decoders choose between the two graphs inside."""
KEEP: Final = ("num_logits_to_keep", "logits_to_keep")
"""An input of transformers.js: how many last tokens get logits; 0 for all of them."""
_PAST: Final = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_PRESENT: Final = re.compile(r"present\.(\d+)\.(key|value)")
_CACHE_DTYPES: Final = frozenset({"float", "float16"})
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model")
_SAME_HEADS: Final = frozenset({"gpt2", "gpt_neo", "gpt_neox", "gptj", "opt"})
"""Families in which each head of queries has keys and values of its own, whatever is not said."""
_UNLIKE: Final = ("global_head_dim", "num_global_key_value_heads", "kv_lora_rank")
"""Keys of families whose layers differ, or whose cache is no plain one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """What `config.json` says of a cache; None for what it does not say.

    Values that are the default of their family need not be in the file, so nothing is refused for what
    only follows from others.

    Attributes:
        layers: Those that keep keys and values.
        heads: Key/value heads.
        width: Numbers of each.
        likely_width: The same as most families have it; fills in what a graph leaves open.
        vocabulary: Tokens.
    """

    layers: int | None
    heads: int | None
    width: int | None
    likely_width: int | None
    vocabulary: int | None


def match_decoder(
    facts: ModelFacts,
    task: Task,
    *,
    fed: Sequence[str],
    renames: Mapping[str, str],
    config: Mapping[str, object],
) -> Interface:
    """As `match_interface`, of a decoder; a graph without a cache is one too.

    Args:
        facts: What its file says.
        task: One that has a cache, and is one graph.
        fed: Inputs that samples of this checkpoint have.
        renames: The candidate's name -> ours.
        config: The checkpoint's `config.json`.

    Raises:
        RecipeError: it is merged of two graphs, of one size only, or of another model; or it takes what
            nothing can feed.
    """
    require_known(facts, renames)
    _require_one_graph(facts)
    notes: list[str] = []
    wanted = [spec for spec in task.inputs if spec.name in fed]
    sizes = sizes_of(config)
    caches = tuple(_caches(facts, renames, sizes))
    past = {cache.given for cache in caches}
    tokens = [tensor for tensor in facts.inputs if tensor.name not in past]
    taken = pair(tokens, wanted, renames, "input", notes)
    supplied = tuple(_supplied(tokens, taken, notes))
    _require_fed(tokens, taken, supplied)
    _require_free(taken)
    inputs = tuple(
        adopted_input(spec, taken[spec.name], notes) for spec in wanted if spec.name in taken
    )
    given = {cache.given_present for cache in caches}
    logits = [
        tensor
        for tensor in facts.outputs
        if tensor.name not in given
        and not (_PRESENT.fullmatch(renames.get(tensor.name, tensor.name)) and not caches)
    ]
    outputs = adopted_outputs(logits, task, has_sentence=False, renames=renames, notes=notes)
    _require_sizes(caches, _tensor(facts.outputs, outputs[0].given), sizes)
    notes += _about(caches, taken)
    unused = (POSITIONS,) if POSITIONS in fed and POSITIONS not in taken else ()
    missing = tuple(
        spec.name for spec in wanted if spec.name not in taken and spec.name not in unused
    )
    notes += [f"it does not take {quoted(name)}, which the checkpoint takes" for name in missing]
    return Interface(
        inputs=inputs,
        supplied=supplied,
        outputs=outputs,
        fixed={},
        missing=missing,
        notes=tuple(notes),
        caches=caches,
        unused=unused,
    )


def sizes_of(config: Mapping[str, object]) -> CacheSizes:
    """How large the cache of a checkpoint is, as far as its `config.json` says so in known words."""

    def number(names: Sequence[str]) -> int | None:
        found = (config.get(name) for name in names)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)

    layers, shared = number(_LAYERS), number(("num_kv_shared_layers",)) or 0
    queries, hidden = number(_HEADS), number(_HIDDEN)
    is_unlike = any(config.get(name) for name in _UNLIKE)
    heads, width = number(("num_key_value_heads",)), number(("head_dim",))
    quotient = hidden // queries if hidden and queries else None
    if config.get("model_type") in _SAME_HEADS:
        heads, width = queries, quotient
    return CacheSizes(
        layers=layers - shared if layers is not None else None,
        heads=None if is_unlike else heads,
        width=None if is_unlike else width,
        likely_width=width or quotient,
        vocabulary=number(("vocab_size",)),
    )


def _require_one_graph(facts: ModelFacts) -> None:
    names = {tensor.name for tensor in facts.inputs}
    if MERGED in names:
        raise RecipeError(
            f"the graph is merged of two decoders, one without and one with a cache, and its input "
            f"`{MERGED}` says which of them runs; such a graph is not checked",
            hint="export it again as one decoder whose cache may be empty, as newer Optimum does "
            "(`optimum-cli export onnx --task text-generation-with-past`)",
        )
    sources = sorted(name for name in names if name.startswith("encoder_") or ".encoder." in name)
    if sources:
        raise RecipeError(
            f"the graph takes {listed(sources)}: it is the decoder behind an encoder, and the "
            "checkpoint is a decoder alone",
            hint="name the checkpoint that it was made from",
        )


def _caches(
    facts: ModelFacts, renames: Mapping[str, str], sizes: CacheSizes
) -> Iterator[AdoptedCache]:
    """Keys and values that go in and come out; nothing when none go in.

    Raises:
        RecipeError: some lack the other end, are of a shape or type that cannot be run here, or of a
            layer that is left out.
    """
    going = _named(facts.inputs, _PAST, renames)
    coming = _named(facts.outputs, _PRESENT, renames)
    if not going:
        return
    lone = [*_lone(going, coming, "present"), *_lone(coming, going, "past_key_values")]
    if lone:
        raise RecipeError(
            f"keys and values of the graph do not go round: there is no {listed(lone)}",
            hint="each `past_key_values.N.key` needs its `present.N.key`; say what they are called "
            "with --rename GRAPH_NAME=NAME",
        )
    layers = sorted({layer for layer, _ in going})
    if layers != [*range(len(layers))] or len(going) != 2 * len(layers):
        raise RecipeError(
            f"the graph has keys and values of layers {', '.join(map(str, layers))}: one is left out, "
            "or has only one of the two",
            hint="export it again: a decoder hands on keys and values of all its layers",
        )
    for (layer, kind), tensor in sorted(going.items()):
        present = coming[layer, kind]
        heads, width = _require_cache(tensor, present, sizes)
        yield AdoptedCache(
            name=f"past_key_values.{layer}.{kind}",
            present=f"present.{layer}.{kind}",
            given=tensor.name,
            given_present=present.name,
            dtype=tensor.dtype,
            heads=heads,
            width=width,
        )


def _named(
    tensors: Sequence[TensorFacts], pattern: re.Pattern[str], renames: Mapping[str, str]
) -> dict[tuple[int, str], TensorFacts]:
    found = {}
    for tensor in tensors:
        match = pattern.fullmatch(renames.get(tensor.name, tensor.name))
        if match is not None:
            found[int(match[1]), match[2]] = tensor
    return found


def _lone(
    one: Mapping[tuple[int, str], TensorFacts],
    other: Mapping[tuple[int, str], TensorFacts],
    name: str,
) -> list[str]:
    return [f"{name}.{layer}.{kind}" for layer, kind in sorted(one.keys() - other.keys())]


def _require_cache(past: TensorFacts, present: TensorFacts, sizes: CacheSizes) -> tuple[int, int]:
    """Heads and width of a cached tensor; GenAI's builder leaves the width to the checkpoint."""
    shape = past.shape
    heads, width = (
        next((size for size in found if isinstance(size, int)), None)
        for found in (
            (*shape[1:2], *present.shape[1:2], sizes.heads),
            (*shape[3:4], *present.shape[3:4], sizes.likely_width),
        )
    )
    if len(shape) != 4 or heads is None or width is None:
        shown = ", ".join(map(str, shape))
        raise RecipeError(
            f"the graph's {quoted(past.name)} is ({shown}), and keys and values are (batch, heads, "
            "tokens, width) here, with numbers for heads and width",
            hint="export it again, with only batch and tokens free",
        )
    if isinstance(shape[0], int) or isinstance(shape[2], int):
        raise RecipeError(
            f"the graph's {quoted(past.name)} takes batches of {shape[0]} and {shape[2]} tokens before: "
            "its cache is of one size, and only a cache that grows from nothing is checked",
            hint="export it again with free axes; a cache in fixed memory is what `static_cache` of a "
            "recipe makes and checks",
        )
    if past.dtype != present.dtype:
        raise RecipeError(
            f"the graph takes {quoted(past.name)} as {past.dtype} and gives {quoted(present.name)} as "
            f"{present.dtype}: what comes out cannot go in again",
            hint="export it again with one type for both",
        )
    if past.dtype not in _CACHE_DTYPES:
        raise RecipeError(
            f"the graph keeps its cache as {past.dtype}, which is not fed here",
            hint="check the graph with a cache of float32 or float16 that the same tool makes for CPUs",
        )
    return heads, width


def _supplied(
    tensors: Sequence[TensorFacts], taken: Mapping[str, TensorFacts], notes: list[str]
) -> Iterator[SuppliedInput]:
    claimed = {tensor.name for tensor in taken.values()}
    for tensor in tensors:
        is_number = tensor.dtype in {"int64", "int32"} and tensor.shape in {(), (1,)}
        if tensor.name in KEEP and is_number and tensor.name not in claimed:
            notes.append(f"it takes {quoted(tensor.name)}: 0 is fed, for the logits of all tokens")
            yield SuppliedInput(
                given=tensor.name, dtype=tensor.dtype, rule="zero", rank=len(tensor.shape)
            )


def _require_fed(
    tensors: Sequence[TensorFacts],
    taken: Mapping[str, TensorFacts],
    supplied: Sequence[SuppliedInput],
) -> None:
    if "input_ids" not in taken:
        raise RecipeError(
            f"the graph takes no tokens: it has {listed([tensor.name for tensor in tensors])}",
            hint="say which input is `input_ids` with --rename GRAPH_NAME=input_ids; embeddings as "
            "input are not fed",
        )
    fed = {tensor.name for tensor in taken.values()} | {each.given for each in supplied}
    unknown = [tensor.name for tensor in tensors if tensor.name not in fed]
    if not unknown:
        return
    raise RecipeError(
        f"the graph takes {listed(unknown)}, and a decoder has nothing to feed there",
        hint="say what it is with --rename GRAPH_NAME=NAME, where NAME is one of `input_ids`, "
        "`attention_mask`, `position_ids`, `past_key_values.N.key`, `past_key_values.N.value`",
    )


def _require_free(taken: Mapping[str, TensorFacts]) -> None:
    """Refuse a graph that reads one number of tokens: prompts and single tokens are both read."""
    for name, tensor in taken.items():
        fixed = [size for size in tensor.shape if isinstance(size, int)]
        if fixed:
            shown = ", ".join(map(str, tensor.shape))
            is_step = name == "input_ids" and tensor.shape[-1] == 1
            raise RecipeError(
                f"the graph takes {quoted(tensor.name)} as ({shown}) only, and a decoder is checked "
                "with prompts and with single tokens, alone and in batches",
                hint="it is the half of a decoder that reads behind a prompt: export one graph for "
                "both"
                if is_step
                else "export it again with free axes",
            )


def _require_sizes(caches: Sequence[AdoptedCache], logits: TensorFacts, sizes: CacheSizes) -> None:
    """Refuse a graph of another model.

    Raises:
        RecipeError: layers, heads, their width or the vocabulary are not the checkpoint's.
    """
    another = "it is of another model, or of another version: name the checkpoint it was made from"
    layers = len(caches) // 2
    if caches and sizes.layers is not None and layers != sizes.layers:
        raise RecipeError(
            f"the graph keeps keys and values of {layers} layers, and the checkpoint has "
            f"{sizes.layers}",
            hint=another,
        )
    for cache in caches:
        wanted = (sizes.heads or cache.heads, sizes.width or cache.width)
        if (cache.heads, cache.width) != wanted:
            raise RecipeError(
                f"the graph's {quoted(cache.given)} has {cache.heads} heads of {cache.width} numbers, "
                f"and keys and values of the checkpoint have {wanted[0]} of {wanted[1]}",
                hint=another,
            )
    words = logits.shape[-1] if logits.shape else None
    if isinstance(words, int) and sizes.vocabulary is not None and words != sizes.vocabulary:
        raise RecipeError(
            f"the graph's {quoted(logits.name)} are of {words} tokens, and the checkpoint's vocabulary "
            f"has {sizes.vocabulary}",
            hint=another,
        )


def _tensor(tensors: Sequence[TensorFacts], name: str) -> TensorFacts:
    return next(tensor for tensor in tensors if tensor.name == name)


def _about(caches: Sequence[AdoptedCache], taken: Mapping[str, TensorFacts]) -> Iterator[str]:
    if not caches:
        yield "it keeps no keys and values: every token is read again for each new one"
    elif any(cache.dtype != "float" for cache in caches):
        yield f"it keeps keys and values as {caches[0].dtype}; they are cast outside"
    if POSITIONS not in taken:
        yield f"it takes no `{POSITIONS}`: it counts them itself"
