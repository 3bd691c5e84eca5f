"""The shapes that a graph's inputs take, from the sizes of its named axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines.profiles import profile_from_axes
from pipeline.graph.files import load_graph_only

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.engines.profiles import InputProfile


def profile_of_inputs(
    model: Path, ranges: Mapping[str, tuple[int, int, int]]
) -> dict[str, InputProfile]:
    """Input name -> its smallest, usual and largest shape.

    Args:
        model: The graph's file; its weights are not read.
        ranges: Axis name -> (min, opt, max).

    Raises:
        EngineBuildError: an axis of an input has no range.
    """
    graph = load_graph_only(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    return profile_from_axes(
        {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in graph.input
            if value.name not in constants
        },
        ranges,
    )
