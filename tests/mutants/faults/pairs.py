"""What goes wrong between an encoder and its decoder: the source's mask, its cache, the decoder's own.

Each is a function of one graph; `tests.checks.test_seq2seq` makes them in the graphs of a tiny pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.mutants.surgery import Graph


def source_mask_lost(graph: Graph) -> None:
    """The decoder looks at padding of the source; it shows beside longer sources."""
    ones = graph.insert("Equal", ["encoder_attention_mask", "encoder_attention_mask"])
    whole = graph.insert("Cast", [ones], to=7)
    graph.redirect("encoder_attention_mask", whole, but=[graph.maker(ones)])  # type: ignore[list-item]


def source_of_first_row(graph: Graph) -> None:
    """What was computed for the first source of a batch is used for all of them (encoder)."""
    first = graph.put("first_row", np.array([0]))
    for name in [name for name in graph.outputs if ".encoder." in name]:
        inner = graph.before_output(name)
        row = graph.insert("Gather", [inner, first], axis=0)
        shape = graph.insert("Shape", [inner])
        graph.insert("Expand", [row, shape], output=name)


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


def source_layers_swapped(graph: Graph) -> None:
    """Two layers look at each other's keys and values of the source."""
    for kind in ("key", "value"):
        names = [f"past_key_values.{layer}.encoder.{kind}" for layer in (0, 1)]
        copies = [graph.insert("Identity", [name]) for name in reversed(names)]
        makers = [graph.maker(copy) for copy in copies]
        for name, copy in zip(names, copies, strict=True):
            graph.redirect(name, copy, but=makers)  # type: ignore[arg-type]


def own_entries_first(graph: Graph) -> None:
    """New keys and values of the decoder stand before the past in what is handed on."""
    for name in [name for name in graph.outputs if ".decoder." in name]:
        past, new = graph.maker(name).input  # type: ignore[union-attr]
        graph.before_output(name)
        graph.insert("Concat", [new, past], axis=-2, output=name)
