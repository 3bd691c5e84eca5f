"""A graph in bfloat16 as ONNX Runtime's CPU can run it: computed in float32, and every result rounded.

ONNX Runtime 1.31 has casts from and to bfloat16 on the CPU, and no arithmetic (`Add(14)`: not
implemented). What torch computes in bfloat16 on a CPU is just this: sums in float32, results rounded to
nearest, halves to even. An engine rounds less often, where it computes several nodes in one kernel.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.errors import StageError
from pipeline.graph.files import iter_tensors, load_graph_only, load_ir_model, save_ir_model
from pipeline.graph.half_rules import MOVES
from pipeline.graph.inspect import iter_nodes
from pipeline.graph.narrow_weights import widened_weights
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTE: Final = "bfloat16 computed in float32 and rounded"

_OF_FEW_BITS: Final = frozenset(
    {"DequantizeLinear", "GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"}
)
_BFLOAT16: Final = ir.DataType.BFLOAT16
_TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})
"""Attributes that name an element type (ONNX opset 24)."""
_ROUNDED: Final = MOVES | {"Abs", "ConstantOfShape", "Max", "Min", "Neg", "Relu", "Where"}
"""Operators whose results need no rounding: each is one of the numbers that they read."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """What to run in place of a graph.

    Attributes:
        model: Directory of the graph that can be run.
        note: How it differs from what it stands in for; empty when it is the same one.
        leaves_weights: Whether it is a graph of floats so large that they lie outside of its file: run
            it with `OnnxRuntimeRunner.leaving_weights`.
    """

    model: Path
    note: str
    leaves_weights: bool = False


def write_stand_in(
    source: Path, scratch: Path, optimizations: Literal["disabled", "all"] = "disabled"
) -> StandIn:
    """Find, or write, what ONNX Runtime's CPU can run in place of a graph.

    Values keep their names; those that are rounded have theirs behind the rounding.

    Args:
        source: Directory of the model; it is not written to.
        scratch: Directory in which one is made for a graph that has bfloat16.
        optimizations: How the graph is to be run. With `all` it is run as a user of ONNX Runtime
            would, who cannot run bfloat16 either: then it stays as it is.

    Raises:
        ArtifactError: when the file is no model.
        StageError: when the graph has subgraphs or functions, values of unknown type, or bfloat16
            inputs or outputs.
        StoreError: when it cannot be written.
    """
    graph = load_graph_only(source / MODEL_FILE)
    leaves_weights = (source / EXTERNAL_DATA_FILE).exists() and not _has_few_bits(graph)
    if optimizations == "all" or not has_bfloat16(graph):
        return StandIn(source, "", leaves_weights)
    model = load_ir_model(source / MODEL_FILE)
    round_to_bfloat16(model)
    directory = Path(tempfile.mkdtemp(prefix="stand-in-", dir=scratch))
    save_ir_model(model, directory, inline_limit_bytes=0)
    del model
    gc.collect()  # a graph is full of cycles, and would keep its weights for long
    return StandIn(directory, NOTE, leaves_weights)


def _has_few_bits(model: onnx.ModelProto) -> bool:
    """Whether integers or few bits are made floats somewhere: packing makes other kernels of these."""
    return any(node.op_type in _OF_FEW_BITS for node in iter_nodes(model.graph.node))


def has_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether a graph takes or makes bfloat16, or stores it for more than to make float32 of it."""
    kind = onnx.TensorProto.BFLOAT16
    graph = model.graph
    widened = widened_weights(model)
    return (
        any(t.data_type == kind and t.name not in widened for t in iter_tensors(model))
        or any(value.type.tensor_type.elem_type == kind for value in (*graph.input, *graph.output))
        or any(
            attribute.name in _TYPE_ATTRIBUTES and attribute.i == kind
            for node in iter_nodes(graph.node)
            for attribute in node.attribute
        )
    )


def round_to_bfloat16(model: ir.Model) -> None:
    """Make all bfloat16 of a model float32, in place, rounding every result to what bfloat16 holds."""
    graph = model.graph
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.dtype is None for node in graph for value in node.outputs):
        passes.ShapeInferencePass()(model)
    _require_known(model)
    for value in graph.initializers.values():
        if value.dtype == _BFLOAT16 and value.const_value is not None:
            value.const_value = _widened(value.const_value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in tuple(graph):
        made = [value for value in node.outputs if value.dtype == _BFLOAT16]
        _widen(node)
        for value in made:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type not in _ROUNDED:
                _round(graph, node, value)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same numbers in float32, made when they are asked for: weights are streamed to disk."""
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _require_known(model: ir.Model) -> None:
    if model.functions or any(
        attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
        for node in model.graph
        for attribute in node.attributes.values()
    ):
        raise StageError("a bfloat16 graph with subgraphs or functions cannot be run on a CPU yet")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == _BFLOAT16:
            raise StageError(
                f"`{value.name}` is bfloat16: only graphs with float32 inputs and outputs are run"
            )
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise StageError(f"the type of `{value.name}` ({node.op_type}) is not known")


def _widen(node: ir.Node) -> None:
    for name, attribute in tuple(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.value == int(_BFLOAT16):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == _BFLOAT16:
                wide = ir.tensor(tensor.numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, wide)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let all that read a value read it rounded."""
    readers = [(use.node, use.idx) for use in value.uses()]
    name = value.name
    value.name = f"{name}_unrounded"
    halves, rounded = tuple(_casts(value, name or ""))
    for reader, place in readers:
        reader.replace_input_with(place, rounded.outputs[0])
    graph.insert_after(node, [halves, rounded])


def _casts(value: ir.Value, name: str) -> Iterator[ir.Node]:
    for made, dtype in ((f"{name}_bf16_bits", _BFLOAT16), (name, ir.DataType.FLOAT)):
        result = ir.Value(name=made, shape=value.shape, type=ir.TensorType(dtype))
        attributes = [ir.AttrInt64("to", int(dtype))]
        yield ir.Node("", "Cast", [value], attributes, outputs=[result], name=f"round_{made}")
        value = result
