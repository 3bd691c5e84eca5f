"""What goes wrong between an encoder and its decoder: the source's mask, its cache, the decoder's own.

Each is a function of one graph; `tests.checks.test_seq2seq` makes some in the graphs of a tiny pair, and
the table makes all of them in whole conversions: `pairs` is mBART, `tiny-t5` has two layers and relative
positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tests.mutants.catalogue import graph_fault
from tests.mutants.faults.decoding import read_first_row
from tests.mutants.surgery import NotHereError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mutants.surgery import Graph

_BOTH = ("pairs", "tiny-t5")


def _pair_fault(
    kind: str,
    why: str,
    component: Literal["encoder", "decoder"],
    *,
    models: tuple[str, ...] = _BOTH,
    in_few_bits: bool = False,
) -> Callable[[Callable[[Graph], None]], Callable[[Graph], None]]:
    """In the exported graph, under 8-bit weights; with `in_few_bits` under 4-bit weights once more."""

    def register(damage: Callable[[Graph], None]) -> Callable[[Graph], None]:
        for target, suffix in (("dynamic", ""), ("int4", "-int4")):
            if suffix and not in_few_bits:
                continue
            graph_fault(
                kind,
                why,
                stages={"export": (target,)},
                models=models if not suffix else models[:1],
                component=component,
                suffix=suffix,
            )(damage)
        return damage

    return register


@_pair_fault(
    "mask",
    "the decoder looks at padding of the source; it shows beside longer sources",
    "decoder",
    in_few_bits=True,
)
def source_mask_lost(graph: Graph) -> None:
    """The decoder looks at padding of the source; it shows beside longer sources."""
    ones = graph.insert("Equal", ["encoder_attention_mask", "encoder_attention_mask"])
    whole = graph.insert("Cast", [ones], to=7)
    graph.redirect("encoder_attention_mask", whole, but=[graph.maker(ones)])  # type: ignore[list-item]


def _invert(graph: Graph, mask: str) -> None:
    one = graph.put("one_of_mask", np.array(1))
    inverted = graph.insert("Sub", [one, mask])
    graph.redirect(mask, inverted, but=[graph.maker(inverted)])  # type: ignore[list-item]


@_pair_fault("mask", "1 means padding in the encoder's mask, and text in the decoder's", "encoder")
def encoder_mask_inverted(graph: Graph) -> None:
    _invert(graph, "attention_mask")


@_pair_fault("mask", "1 means padding in the decoder's mask of the source", "decoder")
def source_mask_inverted(graph: Graph) -> None:
    _invert(graph, "encoder_attention_mask")


@_pair_fault(
    "source",
    "what was computed for the first source of a batch is used for all of them",
    "encoder",
)
def source_of_first_row(graph: Graph) -> None:
    """What was computed for the first source of a batch is used for all of them (encoder)."""
    first = graph.put("first_row", np.array([0]))
    for name in [name for name in graph.outputs if ".encoder." in name]:
        inner = graph.before_output(name)
        row = graph.insert("Gather", [inner, first], axis=0)
        shape = graph.insert("Shape", [inner])
        graph.insert("Expand", [row, shape], output=name)


@_pair_fault(
    "source",
    "keys and values of the source are one token late: a cache that was updated too early",
    "encoder",
    in_few_bits=True,
)
def source_stale(graph: Graph) -> None:
    """The end of the source is what it was one token before: a cache that was updated too early (encoder)."""
    for name in [name for name in graph.outputs if ".encoder." in name]:
        inner = graph.before_output(name)
        axis = graph.put(f"{name}_axis", np.array([2]))
        starts = graph.put(f"{name}_start", np.array([0]))
        ends = graph.put(f"{name}_end", np.array([-1]))
        first = graph.insert(
            "Slice", [inner, starts, graph.put(f"{name}_one", np.array([1])), axis]
        )
        rest = graph.insert("Slice", [inner, starts, ends, axis])
        graph.insert("Concat", [first, rest], axis=2, output=name)


@_pair_fault(
    "source", "keys of the source are handed on as its values, and these as its keys", "encoder"
)
def source_keys_are_values(graph: Graph) -> None:
    for key in [name for name in graph.outputs if name.endswith(".encoder.key")]:
        value = f"{key.removesuffix('key')}value"
        inner = graph.before_output(key), graph.before_output(value)
        graph.insert("Identity", [inner[1]], output=key)
        graph.insert("Identity", [inner[0]], output=value)


@_pair_fault(
    "source",
    "two layers look at each other's keys and values of the source",
    "decoder",
    models=("tiny-t5",),
)
def source_layers_swapped(graph: Graph) -> None:
    """Two layers look at each other's keys and values of the source."""
    for kind in ("key", "value"):
        names = [f"past_key_values.{layer}.encoder.{kind}" for layer in (0, 1)]
        copies = [graph.insert("Identity", [name]) for name in reversed(names)]
        makers = [graph.maker(copy) for copy in copies]
        for name, copy in zip(names, copies, strict=True):
            graph.redirect(name, copy, but=makers)  # type: ignore[arg-type]


@_pair_fault("weights", "the encoder of a model that was trained from another seed", "encoder")
def encoder_of_another_seed(graph: Graph) -> None:
    generator = np.random.default_rng(1)
    changed = 0
    for name, weight in list(graph.initializers()):
        if weight.ndim == 2 and weight.dtype == np.float32 and "layer" in name:
            drawn = generator.normal(weight.mean(), weight.std(), weight.shape)
            graph.put(name, drawn.astype(np.float32))
            changed += 1
    if not changed:
        raise NotHereError("there are no weights")


@_pair_fault(
    "cache",
    "new keys and values of the decoder stand before the past in what is handed on",
    "decoder",
    in_few_bits=True,
)
def own_entries_first(graph: Graph) -> None:
    """New keys and values of the decoder stand before the past in what is handed on."""
    for name in [name for name in graph.outputs if ".decoder." in name]:
        past, new = graph.maker(name).input  # type: ignore[union-attr]
        graph.before_output(name)
        graph.insert("Concat", [new, past], axis=-2, output=name)


@_pair_fault(
    "cache", "every text of a batch goes on from the decoder's past of the first", "decoder"
)
def own_past_of_first_row(graph: Graph) -> None:
    """Every text of a batch goes on from the decoder's past of the first."""
    read_first_row(graph, [name for name in graph.inputs if ".decoder." in name])


@_pair_fault("cache", "the decoder hands its own past on as it came", "decoder")
def own_present_is_past(graph: Graph) -> None:
    for name in [name for name in graph.outputs if ".decoder." in name]:
        graph.before_output(name)
        graph.insert("Identity", [name.replace("present", "past_key_values")], output=name)


def _past_length(graph: Graph) -> str:
    one, two = graph.put("axis_two", np.array([2])), graph.put("axis_three", np.array([3]))
    shape = graph.insert("Shape", ["past_key_values.0.decoder.key"])
    return graph.insert("Slice", [shape, one, two])


@_pair_fault(
    "positions",
    "positions of the decoder count the past twice",
    "decoder",
    models=("pairs",),
    in_few_bits=True,
)
def own_positions_shifted(graph: Graph) -> None:
    (lookup,) = (node for node in graph.all("Gather") if "embed_positions" in node.input[0])
    lookup.input[1] = graph.insert("Add", [lookup.input[1], _past_length(graph)])
    graph.sort()


@_pair_fault("inputs", "the decoder starts from another token than it was trained with", "decoder")
def start_token_wrong(graph: Graph) -> None:
    """Where nothing is in the cache, the first token is another; texts behind a past are right."""
    nothing = graph.insert("Equal", [_past_length(graph), graph.put("nothing", np.array([0]))])
    length = graph.insert("Shape", ["input_ids"], start=1, end=2)
    places = graph.insert(
        "Range",
        [
            graph.put("zeroth", np.array(0)),
            graph.insert("Squeeze", [length]),
            graph.put("step", np.array(1)),
        ],
    )
    is_first = graph.insert("Equal", [places, graph.put("first_place", np.array([0]))])
    is_start = graph.insert("And", [is_first, nothing])
    ids = graph.insert("Where", [is_start, graph.put("other_start", np.array(65)), "input_ids"])
    readers = [node for node in graph.readers("input_ids") if node.op_type == "Gather"]
    if not readers:
        raise NotHereError("tokens are not looked up")
    for node in readers:
        node.input[1] = ids
    graph.sort()


@_pair_fault(
    "weights",
    "the head was stored apart from the embeddings, and is not the same",
    "decoder",
    in_few_bits=True,
)
def decoder_head_untied(graph: Graph) -> None:
    head = next(n for n in graph.all("Transpose") if n.input[0] == "model.lm_head.weight")
    weight = graph.get(head.input[0])
    weight[[101, 110]] = weight[[110, 101]]
    head.input[0] = graph.put("head", weight)


@_pair_fault(
    "positions",
    "relative positions are measured the other way round: before is behind",
    "encoder",
    models=("tiny-t5",),
)
def relative_bias_reversed(graph: Graph) -> None:
    distance = graph.nth("Sub")
    distance.input[0], distance.input[1] = distance.input[1], distance.input[0]
