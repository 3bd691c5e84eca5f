"""What a graph does that makes two runs of one sample differ: random numbers, scales, coarse types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import onnx

from pipeline.graph.files import iter_tensors
from pipeline.graph.inspect import iter_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

_RANDOM: Final = frozenset(
    {
        *("Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
"""Operators of ONNX opset 24 whose result is drawn; a `seed` fixes the first run only."""

_DROPOUTS: Final = frozenset({"BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "Dropout"})
"""The last input says whether they are training (ONNX opset 12, `com.microsoft` 1)."""

_QUANTIZERS_AT_RUN_TIME: Final = frozenset(
    {"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
)


def random_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """`node (operator)` of every node that draws numbers, in the order of the graph."""
    constants = _constant_names(model)
    return tuple(
        _label(node)
        for node in _all_nodes(model)
        if node.op_type in _RANDOM
        or (node.op_type in _DROPOUTS and _is_training(node, model, constants))
    )


def nodes_with_scales_at_run_time(model: onnx.ModelProto) -> tuple[str, ...]:
    """`node (operator)` of every node that quantises by a scale taken from what is fed.

    Such a scale is of a whole batch, so that a sample comes out differently beside others.
    """
    constants = _constant_names(model)
    return tuple(
        _label(node)
        for node in _all_nodes(model)
        if node.op_type in _QUANTIZERS_AT_RUN_TIME
        or (node.op_type == "QuantizeLinear" and node.input[1] not in constants)
    )


def least_float(model: onnx.ModelProto) -> Literal["float32", "float16", "bfloat16"]:
    """The least exact floating-point type in which a graph stores anything."""
    found = {tensor.data_type for tensor in iter_tensors(model)}
    if onnx.TensorProto.BFLOAT16 in found:
        return "bfloat16"
    return "float16" if onnx.TensorProto.FLOAT16 in found else "float32"


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from iter_nodes(model.graph.node)
    for function in model.functions:
        yield from iter_nodes(function.node)


def _constant_names(model: onnx.ModelProto) -> frozenset[str]:
    """Values that hang on no input: initializers, and all that is computed from such alone.

    Those of subgraphs and functions are left out: what is in there is taken to be computed.
    """
    fed = {value.name for value in model.graph.input}
    names = {tensor.name for tensor in model.graph.initializer} - fed
    for node in model.graph.node:
        if node.op_type not in _RANDOM and all(not name or name in names for name in node.input):
            names.update(node.output)
    return frozenset(names)


def _is_training(node: onnx.NodeProto, model: onnx.ModelProto, constants: frozenset[str]) -> bool:
    place = 4 if "Bias" in node.op_type else 2
    if len(node.input) <= place or not node.input[place]:
        return False
    mode = node.input[place]
    if mode not in constants:
        return True  # whoever feeds it decides
    return any(_is_true(tensor) for tensor in _tensors_named(model, mode))


def _tensors_named(model: onnx.ModelProto, name: str) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in model.graph.initializer if tensor.name == name)
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output:
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _is_true(tensor: onnx.TensorProto) -> bool:
    return any(tensor.raw_data) or any(tensor.int32_data)


def _label(node: onnx.NodeProto) -> str:
    name = node.name or next((output for output in node.output if output), "")
    return f"{name} ({node.op_type})"
