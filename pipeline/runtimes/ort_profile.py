"""The shapes that a graph's inputs take, from the sizes of its named axes, as ONNX Runtime reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines.profiles import profile_from_axes
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.engines.profiles import InputProfile


def profile_of_inputs(
    model: Path, ranges: Mapping[str, tuple[int, int, int]]
) -> dict[str, InputProfile]:
    """Input name -> its smallest, usual and largest shape.

    Args:
        model: The graph's file.
        ranges: Axis name -> (min, opt, max).

    Raises:
        StageError: ONNX Runtime cannot load the graph.
        EngineBuildError: an axis of an input has no range.
    """
    with OnnxRuntimeRunner(model, optimizations="disabled", threads=1) as runner:
        return profile_from_axes({spec.name: spec.shape or () for spec in runner.inputs}, ranges)
