"""What a model file holds, in numbers: for the report and the command line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import onnx

from pipeline.graph.files import iter_tensors, load_graph_only

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDescription:
    """One input or output.

    Attributes:
        name: Its name in the graph.
        dtype: ONNX's name of the element type, such as `float16`.
        shape: For each axis its size, its name, or `?` when it has neither.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One model.

    Attributes:
        opset: Version of the standard operators.
        domains: Operator domain -> version, of all that the model imports.
        ir_version: Version of the file format.
        inputs: In the order of the graph, without initializers.
        outputs: In the order of the graph.
        op_counts: Operator -> how many nodes, subgraphs included; other domains as `domain::op`.
        parameters: Number of elements of all initializers.
        weight_bytes: Element type -> bytes of all tensors of that type.
        size_bytes: Of the model file and its external data together.
    """

    opset: int
    domains: Mapping[str, int]
    ir_version: int
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    op_counts: Mapping[str, int]
    parameters: int
    weight_bytes: Mapping[str, int]
    size_bytes: int


def describe_model(path: Path) -> ModelDescription:
    """Describe a model file; weights in external data are not read.

    Raises:
        ArtifactError: when the file is missing or is no ONNX model.
    """
    model = load_graph_only(path)
    domains = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    initializers = {tensor.name for tensor in model.graph.initializer}
    return ModelDescription(
        opset=domains.get("ai.onnx", 0),
        domains=domains,
        ir_version=model.ir_version,
        inputs=tuple(
            describe_value(value) for value in model.graph.input if value.name not in initializers
        ),
        outputs=tuple(describe_value(value) for value in model.graph.output),
        op_counts=count_ops(model),
        parameters=count_parameters(model),
        weight_bytes=count_weight_bytes(model),
        size_bytes=path.stat().st_size + sum(map(_file_size, _external_files(model, path))),
    )


def describe_value(value: onnx.ValueInfoProto) -> TensorDescription:
    """Name, element type and shape of one value."""
    tensor = value.type.tensor_type
    return TensorDescription(
        name=value.name,
        dtype=dtype_name(tensor.elem_type),
        shape=tuple(
            dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
            for dim in tensor.shape.dim
        ),
    )


def dtype_name(elem_type: int) -> str:
    """ONNX's element type in small letters: `float`, `float16`, `int64`."""
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()


def count_ops(model: onnx.ModelProto) -> dict[str, int]:
    """Operator -> number of nodes, most frequent first; subgraphs and functions included."""
    counts: Counter[str] = Counter()
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        counts.update(
            node.op_type if node.domain in _STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"
            for node in iter_nodes(nodes)
        )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def count_parameters(model: onnx.ModelProto) -> int:
    """Number of elements of all initializers."""
    return sum(prod(tensor.dims) for tensor in model.graph.initializer)


def count_weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Element type -> bytes of all initializers and constants of that type, by shape."""
    counts: Counter[str] = Counter()
    for tensor in iter_tensors(model):
        bits = _ELEMENT_BITS.get(tensor.data_type, 0)
        counts[dtype_name(tensor.data_type)] += (prod(tensor.dims) * bits + 7) // 8
    return dict(sorted(counts.items()))


def element_bits(dtype: str) -> int:
    """Bits of one element of a type by `dtype_name`; 0 for strings."""
    return _ELEMENT_BITS[onnx.TensorProto.DataType.Value(dtype.upper())]


def iter_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and all nodes in their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for graph in graphs:
                yield from iter_nodes(graph.node)


def _bits(name: str) -> int:
    four_bit = {"UINT4", "INT4", "FLOAT4E2M1"}
    two_bit = {"UINT2", "INT2"}
    if name in four_bit | two_bit:
        return 4 if name in four_bit else 2
    if name in {"UNDEFINED", "STRING"}:
        return 0
    dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(name))
    return int(dtype.itemsize) * 8


_ELEMENT_BITS = {value: _bits(name) for name, value in onnx.TensorProto.DataType.items()}
"""Element type -> bits of one element; 0 for strings, whose size the shape does not say."""


def _external_files(model: onnx.ModelProto, path: Path) -> set[Path]:
    return {
        path.parent / entry.value
        for tensor in iter_tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
