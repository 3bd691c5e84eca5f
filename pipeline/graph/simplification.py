"""A graph made simpler by onnxsim or onnxslim: constants folded, nodes that do nothing removed."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final, Literal

import onnx

from pipeline.errors import StageError
from pipeline.graph.interface import require_same_interface
from pipeline.graph.validity import require_valid

if TYPE_CHECKING:
    from collections.abc import Iterator

Tool = Literal["onnxsim", "onnxslim"]

SKIPPED_OPTIMIZERS: Final = (
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
)
"""Passes of onnxsim that are left out: they write a linear layer of three dimensions as
Reshape -> Gemm -> Reshape with the shape computed on the way. On MiniLM that makes 297 nodes of 237,
and no attention or linear pattern matches any more (onnxsim 0.8.1)."""


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Let `import torch` fail for a moment, unless torch is there already.

    onnxsim 0.8.1 imports torch for features that are not used here, when there is one: 2.5 s and
    200 MiB more in every process that simplifies. It does without when the import fails.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    import onnxsim


def simplify_model(model: onnx.ModelProto, tool: Tool) -> onnx.ModelProto:
    """Simplify a model; the result computes the same.

    Args:
        model: The model with all weights in memory; not to be used afterwards.
        tool: Who does it.

    Raises:
        StageError: when the tool refuses the model.
    """
    try:
        if tool == "onnxslim":
            import onnxslim

            # Its shape inference gives inputs the sizes that positions have (onnxslim 0.1.98).
            simpler = onnxslim.slim(model, no_shape_infer=True)
        else:
            simpler, _ = onnxsim.simplify(
                model, check_n=0, skipped_optimizers=list(SKIPPED_OPTIMIZERS)
            )
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as err:
        raise StageError(f"{tool} cannot simplify the graph: {err}") from err
    assert isinstance(simpler, onnx.ModelProto)
    _lift_constants(simpler.graph)
    return simpler


def simplify_checked(model: onnx.ModelProto, tool: Tool) -> onnx.ModelProto:
    """Simplify a model that is small, and check what came out in memory.

    Raises:
        StageError: as `simplify_model`; when the result is not valid ONNX, or has other inputs,
            outputs, named axes or another opset.
    """
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    made = simplify_model(model, tool)
    require_valid(made)
    require_same_interface(kept, made)
    return made


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Store constants as weights: onnxsim leaves small results of its folding as nodes."""
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        tensors = [item.t for item in node.attribute if item.name == "value"]
        if node.op_type == "Constant" and tensors and node.output[0] not in outputs:
            tensor = graph.initializer.add()
            tensor.CopyFrom(tensors[0])
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)
