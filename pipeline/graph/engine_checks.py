"""What an ONNX graph must not hold to become a TensorRT engine, all of it listed at once.

TensorRT's parser ignores the domain of a node (`com.microsoft::RotaryEmbedding` is read as the
standard one, with other inputs), stops at the first bad quantisation node, and only warns of inputs
that no output depends on. So the graph is looked at before the parser sees it. Rules and operator
lists as seen with TensorRT-RTX 1.7.1. Nothing here imports TensorRT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.attention_blocks import (
    AttentionBlock,
    find_attention_blocks,
    node_label,
)
from pipeline.graph.dataflow import data_dead_inputs
from pipeline.graph.files import load_graph_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
DYNAMIC_OPERATORS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
    }
)
INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul"})
"""Operators of quant_format qoperator."""

UNSUPPORTED_OPERATORS = frozenset({
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT",
    "DeformConv", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement",
    "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU",
    "TfIdfVectorizer", "Unique",
    "NonZero",  # the parser knows it, and then fails for want of a plugin
})  # fmt: skip
"""Operators of the standard domain that `OnnxParser.supports_operator` denies, and `NonZero`."""

_FOREIGN_TYPES = frozenset({
    TensorProto.UINT8, TensorProto.UINT4, TensorProto.UINT16, TensorProto.INT16,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
})  # fmt: skip
_ARITHMETIC = re.compile(r"[+*/()]| - ")
"""In the name of an axis: it is computed from others."""
_SYMMETRIC = (
    "quantise symmetrically to int8: zero points 0, ActivationSymmetric and WeightSymmetric"
)


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output of the graph.

    Attributes:
        dtype: As numpy names it, such as `int64`.
        dims: One for each axis: a size, the name of a dynamic axis, or None for one without name.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """Why the graph cannot become an engine.

    Attributes:
        node: The node's name, or `input NAME`.
        operator: With its domain where that is not the standard one; empty for an input.
        what: What is wrong.
        hint: What to do.
    """

    node: str
    operator: str
    what: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGraph:
    """What the engine stage needs to know of a graph.

    Attributes:
        inputs: Without those that are initializers.
        outputs: In the graph's order.
        problems: Empty when the graph may be parsed.
        attentions: The attention blocks that the builder should fuse.
    """

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    problems: tuple[GraphProblem, ...]
    attentions: tuple[AttentionBlock, ...]


def read_engine_graph(path: Path) -> EngineGraph:
    """Look at a graph without reading its external weights.

    Args:
        path: `model.onnx`; external data, where there is any, lies beside it.

    Raises:
        ArtifactError: for a file that is not an ONNX graph.
    """
    model = load_graph_only(path)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return EngineGraph(
        inputs=tuple(_read_tensor(i) for i in model.graph.input if i.name not in initializers),
        outputs=tuple(_read_tensor(output) for output in model.graph.output),
        problems=tuple(_find_problems(model, path.parent)),
        attentions=find_attention_blocks(model.graph),
    )


def _read_tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    kind = value.type.tensor_type
    return GraphTensor(
        value.name,
        helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "unknown",
        tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
        ),
    )


def _find_problems(model: onnx.ModelProto, base: Path) -> Iterator[GraphProblem]:
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            yield GraphProblem(
                f"input {value.name}", "", "strings are unknown to TensorRT", "tokenise outside"
            )
    yield from _find_axis_problems(model.graph)
    for name in data_dead_inputs(model):
        yield GraphProblem(
            f"input {name}",
            "",
            "no output depends on its values, only on its shape",
            "the export has merged it with another input: give it example values of its own",
        )
    yield from _find_node_problems(model.graph, base, {})


def _find_axis_problems(graph: onnx.GraphProto) -> Iterator[GraphProblem]:
    """Axes that TensorRT would take for others than they are.

    It holds dynamic axes of one name to one size, and takes a number that is written as a name for
    a dynamic axis of that name, as some exporters write the sizes of caches.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in initializers or not value.type.HasField("tensor_type"):
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            where = f"input {value.name}"
            if dim.HasField("dim_value") and dim.dim_value < 1:
                yield GraphProblem(
                    where,
                    "",
                    f"axis {axis} has the size {dim.dim_value}",
                    "give every axis a size of at least 1, or a name when it is dynamic",
                )
            elif dim.dim_param.strip().lstrip("-").isdigit():
                yield GraphProblem(
                    where,
                    "",
                    f"axis {axis} has the number `{dim.dim_param}` for a name, so that TensorRT "
                    "takes it for a dynamic axis",
                    "write the size as a size (dim_value)",
                )
            elif _ARITHMETIC.search(dim.dim_param):
                yield GraphProblem(
                    where,
                    "",
                    f"axis {axis} is `{dim.dim_param}`, which is computed from other axes; inputs "
                    "have names only",
                    "give the axis a name of its own, or the name of the axis it is equal to",
                )


def _find_node_problems(
    graph: onnx.GraphProto, base: Path, outer: dict[str, TensorProto]
) -> Iterator[GraphProblem]:
    constants = outer | _constants(graph)
    for node in graph.node:
        what, hint = _operator_problem(node)
        if not what and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            what, hint = _quantization_problem(node, constants, base)
        if what:
            is_standard = node.domain in _STANDARD_DOMAINS
            operator = node.op_type if is_standard else f"{node.domain}::{node.op_type}"
            yield GraphProblem(node_label(node), operator, what, hint)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _find_node_problems(attribute.g, base, constants)


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _operator_problem(node: onnx.NodeProto) -> tuple[str, str]:
    if node.domain not in _STANDARD_DOMAINS:
        return (
            f"TensorRT ignores the domain {node.domain} and would take it for another operator",
            "build from the graph before it was fused for ONNX Runtime",
        )
    if node.op_type in DYNAMIC_OPERATORS:
        return (
            "dynamic quantisation is unknown to TensorRT",
            "quantise statically, with QuantizeLinear/DequantizeLinear pairs",
        )
    if node.op_type in INTEGER_OPERATORS:
        return (
            "operators on quantised tensors are unknown to TensorRT",
            "take quant_format qdq: QuantizeLinear/DequantizeLinear pairs",
        )
    if node.op_type in UNSUPPORTED_OPERATORS:
        return (
            "TensorRT does not support this operator",
            "rewrite it, or compute it outside of the model",
        )
    return "", ""


def _quantization_problem(
    node: onnx.NodeProto, constants: dict[str, TensorProto], base: Path
) -> tuple[str, str]:
    quantized = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if quantized is not None and quantized.data_type == TensorProto.INT32:
        return (
            "an int32 bias is dequantised, which TensorRT refuses",
            "leave biases alone: QuantizeBias=False",
        )
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    kinds = {tensor.data_type for tensor in (quantized, zero_point) if tensor is not None}
    kinds |= {a.i for a in node.attribute if a.name == "output_dtype"}
    if foreign := kinds & _FOREIGN_TYPES:
        names = ", ".join(TensorProto.DataType.Name(kind).lower() for kind in sorted(foreign))
        what = "TensorRT quantises to signed int8, to fp8 (float8e4m3fn) and to int4 only, not to "
        return what + names, _SYMMETRIC
    if len(node.input) > 2 and node.input[2] and zero_point is None:
        return "its zero point is not a constant, so it may not be 0", _SYMMETRIC
    if zero_point is not None and np.any(
        numpy_helper.to_array(zero_point, base_dir=str(base)).astype(np.float32)
    ):
        return "its zero point is not 0", _SYMMETRIC
    return "", ""
