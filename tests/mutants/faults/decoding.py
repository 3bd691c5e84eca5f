"""What goes wrong with a decoder: the cache, positions behind a past, shared heads, the tied head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.mutants.catalogue import graph_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.mutants.surgery import Graph


def _decoder_fault(
    kind: str, why: str, *, in_few_bits: bool = False
) -> Callable[[Callable[[Graph], None]], Callable[[Graph], None]]:
    """Under 8-bit weights and activations; with `in_few_bits` under 4-bit weights once more."""

    def register(damage: Callable[[Graph], None]) -> Callable[[Graph], None]:
        for target, suffix in (("dynamic", ""), ("int4", "-int4")):
            if not suffix or in_few_bits:
                graph_fault(
                    kind, why, stages={"export": (target,)}, models=("lm",), suffix=suffix
                )(damage)
        return damage

    return register


def _joins(graph: Graph) -> list[Any]:
    """The nodes that put new keys and values behind those of the cache."""
    made = [graph.maker(name) for name in graph.outputs if name.startswith("present.")]
    assert all(node is not None and node.op_type == "Concat" for node in made)
    return made


@_decoder_fault(
    "mask", "the attention mask is not used; it shows beside longer prompts", in_few_bits=True
)
def cache_mask_lost(graph: Graph) -> None:
    ones = graph.insert("Equal", ["attention_mask", "attention_mask"])
    whole = graph.insert("Cast", [ones], to=7)
    equal = graph.maker(ones)
    graph.redirect("attention_mask", whole, but=[equal])


def _past_length(graph: Graph) -> str:
    return graph.insert("Shape", ["past_key_values.0.key"], start=2, end=3)


@_decoder_fault(
    "cache",
    "positions count the past twice: the wrapper adds it, and so does the model",
    in_few_bits=True,
)
def positions_shifted_by_past(graph: Graph) -> None:
    moved = graph.insert("Add", ["position_ids", _past_length(graph)])
    graph.redirect("position_ids", moved, but=[graph.maker(moved)])


@_decoder_fault("cache", "positions begin anew behind every past")
def positions_start_anew(graph: Graph) -> None:
    moved = graph.insert("Sub", ["position_ids", _past_length(graph)])
    graph.redirect("position_ids", moved, but=[graph.maker(moved)])


@_decoder_fault("cache", "new keys and values are put in front of the past", in_few_bits=True)
def new_entries_first(graph: Graph) -> None:
    for node in _joins(graph):
        node.input[0], node.input[1] = node.input[1], node.input[0]


@_decoder_fault(
    "cache",
    "attention is right, but what is handed on has the new entries in front; a full mask hides it",
)
def new_entries_first_in_result(graph: Graph) -> None:
    for node in _joins(graph):
        present = node.output[0]
        past, new = node.input
        graph.before_output(present)
        graph.insert("Concat", [new, past], axis=-2, output=present)


@_decoder_fault("cache", "key and value heads are handed on in another order")
def cache_heads_permuted(graph: Graph) -> None:
    order = graph.put("order", np.array([1, 0]))
    for name in [name for name in graph.outputs if name.startswith("present.")]:
        inner = graph.before_output(name)
        graph.insert("Gather", [inner, order], axis=1, output=name)


@_decoder_fault("weights", "key heads of one layer belong to other queries", in_few_bits=True)
def key_heads_permuted(graph: Graph) -> None:
    (name,) = graph.find("layers.1", "k_proj.weight")
    graph.change(name, lambda weight: np.roll(weight, len(weight) // 2, axis=0))


@_decoder_fault("cache", "the past is handed on as it came", in_few_bits=True)
def present_is_past(graph: Graph) -> None:
    for name in [name for name in graph.outputs if name.startswith("present.")]:
        graph.before_output(name)
        past = name.replace("present", "past_key_values")
        graph.insert("Identity", [past], output=name)


@_decoder_fault("cache", "as long as it must be, but the new entry is the first one again")
def cache_entries_stale(graph: Graph) -> None:
    for node in _joins(graph):
        present = node.output[0]
        inner = graph.before_output(present)
        axes = {"starts": [1], "ends": [2**40], "axes": [2]}
        sizes = [graph.put(f"{present}_{key}", np.array(value)) for key, value in axes.items()]
        tail = graph.insert("Slice", [inner, *sizes])
        first = graph.insert(
            "Slice",
            [inner, graph.put("zero", np.array([0])), graph.put("one", np.array([1])), sizes[2]],
        )
        graph.insert("Concat", [tail, first], axis=2, output=present)


def read_first_row(graph: Graph, names: Iterable[str]) -> None:
    """Every row of a batch reads what these inputs hold for the first row."""
    first = graph.put("first_row", np.array([0]))
    for name in names:
        row = graph.insert("Gather", [name, first], axis=0)
        shape = graph.insert("Shape", [name])
        whole = graph.insert("Expand", [row, shape])
        readers = [graph.maker(row), graph.maker(shape)]
        graph.redirect(name, whole, but=[node for node in readers if node is not None])


@_decoder_fault(
    "cache", "every row of a batch goes on from the past of the first: right for one text"
)
def past_of_first_row(graph: Graph) -> None:
    read_first_row(graph, [name for name in graph.inputs if name.startswith("past_key_values.")])


@_decoder_fault("positions", "the rotary base of another model of the family", in_few_bits=True)
def rope_base(graph: Graph) -> None:
    (name,) = graph.find("inv_freq")
    graph.change(name, lambda found: found ** (np.log(50_000) / np.log(10_000)))


@_decoder_fault(
    "weights",
    "the head was stored apart from the embeddings, and is not the same",
    in_few_bits=True,
)
def head_untied(graph: Graph) -> None:
    transposed = graph.maker(graph.maker("logits").input[1])  # type: ignore[union-attr]
    weight = graph.get(transposed.input[0])  # type: ignore[union-attr]
    weight[[3, 4]] = weight[[4, 3]]
    transposed.input[0] = graph.put("head", weight)  # type: ignore[union-attr]


def _packed(graph: Graph) -> Any:
    """The second product with weights in few bits."""
    return graph.all("MatMulNBits")[1]


def _in_packing(
    kind: str, why: str
) -> Callable[[Callable[[Graph], None]], Callable[[Graph], None]]:
    return graph_fault(kind, why, stages={"pack_weights": ("int4",)}, models=("lm",))


@_in_packing("weights in few bits", "two weights of a byte in the other order")
def nibbles_swapped(graph: Graph) -> None:
    graph.change(_packed(graph).input[1], lambda packed: (packed >> 4) | (packed << 4))


@_in_packing("weights in few bits", "every block has the scale of its neighbour")
def scales_of_next_block(graph: Graph) -> None:
    graph.change(_packed(graph).input[2], lambda scales: np.roll(scales, 1, axis=-1))


@_in_packing("cache", "the packed graph hands key and value heads on in another order")
def packed_cache_heads_permuted(graph: Graph) -> None:
    cache_heads_permuted(graph)
