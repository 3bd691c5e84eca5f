"""Whether a model file is valid ONNX: the first rung of the parity ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path


def require_valid(model: Path | onnx.ModelProto) -> None:
    """Run the full ONNX checker, with strict type and shape inference, on a model.

    A file is better than a model in memory: those above 2 GiB are checked too, and weights are not copied.

    Raises:
        StageError: with the checker's first complaint.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
    ) as err:
        reason = " ".join(str(err).split())[:500]
        where = "" if isinstance(model, onnx.ModelProto) else model.name
        raise StageError(f"the graph is not valid ONNX: {reason}", where=where) from err
