"""Slices that take every element, and so do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.graph.fusions.matching import input_of, is_standard
from pipeline.graph.fusions.outcome import Outcome

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

NAME = "whole_slices"


def remove_whole_slices(graph: ir.Graph, shapes: SymbolicShapes) -> Outcome:
    """Readers of a slice that is proven to take everything read its source; see the module.

    A slice keeps the lengths of its source only when it takes each axis from 0 in steps of 1.
    """
    outcome = Outcome()
    for node in [node for node in graph if is_standard(node, "Slice")]:
        source, result = input_of(node, 0), node.outputs[0]
        shape = shapes.of(source)
        if source is None or shape is None or shape != shapes.of(result):
            continue
        if source.is_graph_input() or result.is_graph_output():
            continue  # names of the interface stay where they are
        replace_readers(result, source)
        outcome.fired += 1
    return outcome


def replace_readers(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of `old` read `new`, which keeps its name."""
    for node, index in list(old.uses()):
        node.replace_input_with(index, new)
