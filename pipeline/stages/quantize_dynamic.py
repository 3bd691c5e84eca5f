"""Quantise weights to 8 bits with activation scales taken at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig, model_size_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class QuantizeDynamicConfig(StageConfig):
    """How to quantise. Figures: MiniLM against torch, worst token of all, cosine."""

    per_channel: bool = Field(
        default=True,
        description="one scale a column of each weight; one for all of it costs accuracy "
        "(real sentences 0.96 -> 0.80) and gains no speed",
    )
    weight_dtype: Literal["int8", "uint8"] = Field(
        default="int8",
        description="int8 is symmetric and fastest everywhere; x86 CPUs without VNNI saturate its "
        "largest intermediate sums, which changes results a little (0.993 -> 0.992). uint8 gives "
        "the same numbers on every CPU, and is twice as slow on those with VNNI",
    )
    reduce_range: bool = Field(
        default=False,
        description="7-bit weights, which do not saturate on x86 CPUs without VNNI (0.987 -> 0.981)",
    )
    quantize_embeddings: bool = Field(
        default=True,
        description="int8 token tables with one scale a row: MiniLM in 22 MiB instead of 56, with "
        "the same speed and accuracy",
    )
    treat_outliers: bool = Field(
        default=True,
        description="computes the few neurons of a feed-forward block in float whose results would "
        "coarsen all others, and divides such channels of a normalised tensor: 30 batches of random "
        "tokens 0.91 -> 0.987, for 0 to 5 % more time; does nothing where weights have no outliers",
    )
    exclude_nodes: tuple[str, ...] = Field(
        default=(),
        description="names of nodes that stay float; `*`, `?` and `[...]` match as in file names, "
        "and a pattern that matches nothing is an error",
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
        QuantizationError: when no layer could be quantised, or a pattern matches nothing.
        StageError: when the port `repair` holds something else.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.graph.quantization import QuantizationOptions, quantize_dynamic
    from pipeline.stages.given_back import read_given_back, repair_facts

    model = load_ir_model(inputs["model"] / MODEL_FILE)
    given_back = read_given_back(inputs)
    options = QuantizationOptions(**config.model_dump(), given_back=given_back)
    result = quantize_dynamic(model, options)
    for node, reason in result.kept_float:
        context.log(f"{node} stays float: {reason}")
    result.require_any()
    save_ir_model(model, output)
    size_ratio = model_size_bytes(output) / model_size_bytes(inputs["model"])
    return result.as_json(size_ratio) | repair_facts(inputs, given_back)


QUANTIZE_DYNAMIC = Stage(
    name="quantize_dynamic",
    version=4,
    footprint=Footprint(base_mib=150, memory_per_weight=2.0, disk_per_weight=0.3),
    config_type=QuantizeDynamicConfig,
    coverage=("quantized_weights", "quantized_matmuls", "size_ratio"),
    run=_run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir"),
    preload=("pipeline.graph.files", "pipeline.graph.quantization"),
)
"""Ports `model` and, with a repair, `repair` -> `model.onnx` with 8-bit weights."""
