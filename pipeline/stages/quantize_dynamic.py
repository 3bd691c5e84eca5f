"""Quantise weights to 8 bits with activation scales taken at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class QuantizeDynamicConfig(StageConfig):
    """How to quantise. Figures: MiniLM, worst token of real sentences against torch."""

    per_channel: bool = Field(
        default=True,
        description="one scale a column of each weight; one for all of it costs accuracy "
        "(cosine 0.96 -> 0.89) and gains no speed",
    )
    weight_dtype: Literal["int8", "uint8"] = Field(
        default="int8",
        description="int8 is symmetric and fastest everywhere, but x86 CPUs without VNNI saturate "
        "its intermediate sums, so that results depend on the CPU; uint8 gives the same numbers on "
        "every CPU and is about 15 % slower without VNNI",
    )
    reduce_range: bool = Field(
        default=False,
        description="7-bit weights, which do not saturate on x86 CPUs without VNNI",
    )
    quantize_embeddings: bool = Field(
        default=False,
        description="one scale for each whole embedding table: a third of the size, less accurate",
    )


def _run(
    config: QuantizeDynamicConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Quantises `model`; facts name what was quantised, what was not and why, and the coverage.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when ONNX Runtime cannot quantise it.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.quantization import QuantizationOptions, quantize_dynamic

    options = QuantizationOptions(
        per_channel=config.per_channel,
        weight_dtype=config.weight_dtype,
        reduce_range=config.reduce_range,
        quantize_embeddings=config.quantize_embeddings,
    )
    result = quantize_dynamic(inputs["model"] / MODEL_FILE, output, context.scratch, options)
    for node, reason in result.kept_float:
        context.log(f"{node} stays float: {reason}")
    return result.as_json()


QUANTIZE_DYNAMIC = Stage(
    name="quantize_dynamic",
    version=1,
    config_type=QuantizeDynamicConfig,
    run=_run,
    packages=("onnx", "onnxruntime", "numpy"),
    extra="cpu",
    preload=("pipeline.graph.quantization",),
)
"""Port `model` (`model.onnx`) -> `model.onnx` with 8-bit weights."""
