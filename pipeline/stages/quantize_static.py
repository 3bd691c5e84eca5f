"""Quantise a graph to 8 bits, integers or float8_e4m3fn, with ranges that were found beforehand, for one runtime.

Ports: `model` (the graph as that runtime gets it: fused for ONNX Runtime, cast to float16 for
TensorRT), `ranges` (`ranges.json` of the simplified graph that it was made from) and, with a repair,
`repair` (`repair.json`: layers that stay float besides).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig, model_size_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.graph.qdq_placements import Placement
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
RANGES_PORT = "ranges"

Operator = Literal["MatMul", "Gemm", "Conv"]


class StaticOptions(StageConfig):
    """What a recipe may say about static quantisation, for every runtime."""

    per_channel: bool = Field(
        default=True, description="one scale for each output of a weight, or one for all of it"
    )
    op_types: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Conv"), description="operators that are quantised"
    )
    exclude_nodes: tuple[str, ...] = Field(
        default=(),
        description="names of nodes that stay float; `*`, `?` and `[...]` match as in file names, "
        "and a pattern that matches nothing is an error",
    )


class _KernelOptions(StaticOptions):
    """What ONNX Runtime's kernels leave open, whatever the types."""

    reduce_range: bool = Field(
        default=False,
        description="7-bit weights, which do not saturate on x86 CPUs without VNNI",
    )
    quantize_embeddings: bool = Field(
        default=True, description="int8 token tables with one scale a row"
    )


class OnnxRuntimeStaticOptions(_KernelOptions):
    """Options that only ONNX Runtime's kernels leave open."""

    activation_dtype: Literal["uint8", "int8"] = Field(
        default="uint8",
        description="uint8 has a zero point, int8 is symmetric around zero, but for "
        "convolutions behind which a Relu follows",
    )
    weight_dtype: Literal["int8", "uint8"] = Field(default="int8", description="type of weights")


class QuantizeStaticConfig(_KernelOptions):
    """For whom, and how; `float8` is float8_e4m3fn, which only TensorRT takes."""

    placement: Literal["onnxruntime-cpu", "tensorrt"]
    activation_dtype: Literal["uint8", "int8", "float8"] = "uint8"
    weight_dtype: Literal["int8", "uint8", "float8"] = "int8"


def run(
    config: QuantizeStaticConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    """Quantises `model`; facts name what was quantised, what was not and why, and the coverage.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when a tensor has no range, a pattern matches nothing, the placement does
            not allow an option, or the result is not valid.
        StageError: when the port `repair` holds something else.
    """
    from pipeline.calibration.ranges import load_ranges
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.graph.qdq import QdqOptions, quantize_static
    from pipeline.graph.qdq_placements import PLACEMENTS
    from pipeline.graph.validity import require_valid
    from pipeline.stages.given_back import read_given_back, repair_facts

    placement = PLACEMENTS[config.placement]
    _require_allowed(config, placement)
    ranges = load_ranges(inputs[RANGES_PORT])
    model = load_ir_model(inputs[MODEL_PORT] / MODEL_FILE)
    given_back = read_given_back(inputs)
    options = QdqOptions(**config.model_dump(exclude={"placement"}), given_back=given_back)
    result = quantize_static(model, placement, ranges.by_name(), options)
    for node, reason in result.kept_float:
        context.log(f"{node} stays float: {reason}")
    result.require_any()
    path = save_ir_model(model, output)
    if config.placement == "tensorrt":  # operators of ONNX Runtime's domain are unknown to onnx
        require_valid(path)
    size_ratio = model_size_bytes(output) / model_size_bytes(inputs[MODEL_PORT])
    return {
        "placement": config.placement,
        "method": ranges.method,
        "calibration_samples": ranges.samples,
        **result.as_json(size_ratio),
        **repair_facts(inputs, given_back),
    }


def _require_allowed(config: QuantizeStaticConfig, placement: Placement) -> None:
    from pipeline.errors import QuantizationError

    faults = []
    if config.activation_dtype not in placement.activation_dtypes:
        faults.append(f"activation_dtype {config.activation_dtype}")
    if config.weight_dtype not in placement.weight_dtypes:
        faults.append(f"weight_dtype {config.weight_dtype}")
    if (config.activation_dtype == "float8") != (config.weight_dtype == "float8"):
        faults.append("float8 beside integers")
    if config.weight_dtype == "float8" and config.reduce_range:
        faults.append("reduce_range with float8")
    if config.quantize_embeddings and not placement.allows_embeddings:
        faults.append("quantize_embeddings")
    if faults:
        raise QuantizationError(
            f"placement {config.placement} does not allow {', '.join(faults)}; it takes "
            f"activations in {' or '.join(placement.activation_dtypes)} and weights in "
            f"{' or '.join(placement.weight_dtypes)}"
        )


QUANTIZE_STATIC = Stage(
    name="quantize_static",
    version=4,
    footprint=Footprint(base_mib=150, memory_per_weight=2.0, disk_per_weight=0.3),
    config_type=QuantizeStaticConfig,
    coverage=("quantized_weights", "quantized_matmuls", "size_ratio"),
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir"),
    preload=("pipeline.graph.files", "pipeline.graph.qdq", "pipeline.calibration.ranges"),
)
"""Ports `model` and `ranges` -> `model.onnx` with quantise/dequantise pairs."""
