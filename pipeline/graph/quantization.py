"""Dynamic quantisation by ONNX Runtime, and the count of what it left in float.

ONNX Runtime skips what it cannot quantise without a word, so nothing it says is relied on: the
linear layers are listed before, and looked for afterwards.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Literal

import onnx
from onnxruntime import quantization as ort_quantization

from pipeline.errors import QuantizationError
from pipeline.graph.files import INLINE_LIMIT_BYTES, load_graph_only, load_model, save_model
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.hashing import JSON

_FLOAT_BYTES: Final[dict[int, int]] = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
_WEIGHT_TYPES: Final = {
    "int8": ort_quantization.QuantType.QInt8,
    "uint8": ort_quantization.QuantType.QUInt8,
}
_GEMM_SUFFIX: Final = "_MatMul"
"""ONNX Runtime 1.31.1 splits Gemm into MatMul and Add before it quantises, and names the MatMul so."""

_QUANTIZED_SUFFIX: Final = "_quant"
"""What ONNX Runtime 1.31.1 appends to the name of a node that it has quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """As `pipeline.stages.quantize_dynamic.QuantizeDynamicConfig`, which explains each."""

    per_channel: bool
    weight_dtype: Literal["int8", "uint8"]
    reduce_range: bool
    quantize_embeddings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """A MatMul or Gemm of the graph before quantisation.

    Attributes:
        name: Of the node.
        weight: Name of its constant factor; empty when both factors are computed.
        size_bytes: Of the weight in float; zero without one.
        reason: Why it cannot be quantised; empty when it can.
    """

    name: str
    weight: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationResult:
    """What was quantised.

    Attributes:
        quantized: Names of the linear layers that are now integer products.
        kept_float: (name, reason) of every other matrix product of the graph.
        weight_coverage: Share of the bytes of all linear layers' weights that was quantised, a
            shared weight counted once; embeddings are no linear layers. Zero without any.
        layer_coverage: Share of the linear layers (products with a weight) that was quantised.
        size_ratio: Bytes of the model after, over before.
    """

    quantized: tuple[str, ...]
    kept_float: tuple[tuple[str, str], ...]
    weight_coverage: float
    layer_coverage: float
    size_ratio: float

    def as_json(self) -> dict[str, JSON]:
        """The facts of the stage."""
        return {
            "quantized": list(self.quantized),
            "kept_float": [{"node": node, "reason": reason} for node, reason in self.kept_float],
            "coverage": {
                "quantized_weights": self.weight_coverage,
                "quantized_matmuls": self.layer_coverage,
                "size_ratio": self.size_ratio,
            },
        }


def quantize_dynamic(
    source: Path, output: Path, scratch: Path, options: QuantizationOptions
) -> QuantizationResult:
    """Quantise the linear layers of a model file.

    Args:
        source: `model.onnx`, with its external data beside it; only read.
        output: An empty directory for the quantised model.
        scratch: A private empty directory. ONNX Runtime gets a copy of the model there, because it
            writes `model-inferred.onnx` beside its input.
        options: How to quantise.

    Raises:
        ArtifactError: when the source is no model.
        QuantizationError: when ONNX Runtime fails.
        StoreError: when the output cannot be written.
    """
    layers = _name_nodes_and_list_layers(source, scratch)
    size_before = _size(source.parent)
    made = scratch / "quantized.onnx"
    operators = ["MatMul", "Gather"] if options.quantize_embeddings else ["MatMul"]
    try:
        with _quiet_root_logger():
            ort_quantization.quantize_dynamic(
                scratch / MODEL_FILE,
                made,
                op_types_to_quantize=operators,
                per_channel=options.per_channel,
                reduce_range=options.reduce_range,
                weight_type=_WEIGHT_TYPES[options.weight_dtype],
                use_external_data_format=size_before > INLINE_LIMIT_BYTES,
                # Shape inference stops at operators of other domains; every tensor whose type it
                # does not find is a float one here.
                extra_options={
                    "MatMulConstBOnly": True,
                    "DefaultTensorType": onnx.TensorProto.FLOAT,
                },
            )
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError) as err:
        raise QuantizationError(f"ONNX Runtime cannot quantise the model: {err}") from err
    save_model(_without_traces(load_model(made)), output)
    return _result(layers, load_graph_only(output / MODEL_FILE), size_before, _size(output))


def list_linear_layers(graph: onnx.GraphProto) -> tuple[LinearLayer, ...]:
    """Every MatMul and Gemm of a graph, in its order; subgraphs are not looked into."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    return tuple(
        _linear_layer(node, weights)
        for node in graph.node
        if node.op_type in {"MatMul", "Gemm"} and node.domain in {"", "ai.onnx"}
    )


def _linear_layer(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> LinearLayer:
    index = next((i for i in (1, 0) if node.input[i] in weights), None)
    if index is None:
        return LinearLayer(
            name=node.name, weight="", size_bytes=0, reason="both factors are computed"
        )
    weight = weights[node.input[index]]
    width = _FLOAT_BYTES.get(weight.data_type, 0)
    reason = ""
    if index == 0:
        reason = "its constant is the left factor"
    elif not width:
        reason = f"its weight is {onnx.TensorProto.DataType.Name(weight.data_type)}"
    elif node.op_type == "Gemm" and not _is_plain_gemm(node):
        reason = "it scales or transposes its input"
    return LinearLayer(
        name=node.name,
        weight=weight.name,
        size_bytes=prod(weight.dims) * (width or 1),
        reason=reason,
    )


def _is_plain_gemm(node: onnx.NodeProto) -> bool:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return (
        attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
        and not attributes.get("transA", 0)
    )


def _name_nodes_and_list_layers(source: Path, scratch: Path) -> tuple[LinearLayer, ...]:
    """Puts a copy of the model into `scratch` whose products all have names of their own."""
    model = load_graph_only(source)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
    (scratch / MODEL_FILE).write_bytes(model.SerializeToString())
    data = source.parent / EXTERNAL_DATA_FILE
    if data.exists():
        shutil.copyfile(data, scratch / EXTERNAL_DATA_FILE)
    return list_linear_layers(model.graph)


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """ONNX Runtime asks on the root logger for a pre-processing that our chain has done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops recorded shapes, which are of no use behind integer operators, and ORT's own notes."""
    del model.graph.value_info[:]
    kept = [item for item in model.metadata_props if item.key != "onnx.infer"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def _size(directory: Path) -> int:
    files = (directory / MODEL_FILE, directory / EXTERNAL_DATA_FILE)
    return sum(file.stat().st_size for file in files if file.exists())


def _result(
    layers: tuple[LinearLayer, ...], after: onnx.ModelProto, size_before: int, size_after: int
) -> QuantizationResult:
    made = {node.name for node in after.graph.node if node.op_type == "MatMulInteger"}
    quantized: list[LinearLayer] = []
    kept: list[tuple[str, str]] = []
    for layer in layers:
        names = (layer.name + _QUANTIZED_SUFFIX, layer.name + _GEMM_SUFFIX + _QUANTIZED_SUFFIX)
        if made.intersection(names):
            quantized.append(layer)
        else:
            kept.append((layer.name, layer.reason or "ONNX Runtime left it, without a reason"))
    sizes = {layer.weight: layer.size_bytes for layer in layers if layer.weight}
    # A weight that any layer still reads in float is not counted, even when another's is integer.
    float_weights = {layer.weight for layer in layers if layer not in quantized}
    done = sum(size for weight, size in sizes.items() if weight not in float_weights)
    total = sum(sizes.values())
    linear = sum(bool(layer.weight) for layer in layers)
    return QuantizationResult(
        quantized=tuple(layer.name for layer in quantized),
        kept_float=tuple(kept),
        weight_coverage=done / total if total else 0.0,
        layer_coverage=len(quantized) / linear if linear else 0.0,
        size_ratio=size_after / size_before,
    )
