"""Store the weights of a graph in 4 or 8 bits; what is computed stays float.

Ports: `model` (fused for ONNX Runtime, or cast to float16 or bfloat16 for TensorRT); for a calibrated
method `moments` of what goes into its products; where some have 8 bits and others 4, `bits`. No ranges
are needed: activations are not quantised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig, model_size_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from pipeline.graph.weight_only import WeightOnlyRequest
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
MOMENTS_PORT = "moments"
BITS_PORT = "bits"

BITS_FILE: Final = "bits.json"
"""What `pipeline.stages.choose_bits` writes."""

WeightBits = Literal[4, 8]
BlockSize = Literal[16, 32, 64, 128, 256]

DEFAULT_BLOCK_SIZE: Final[BlockSize] = 32

Operator = Literal["MatMul", "Gemm"]

CALIBRATED: Final = frozenset({"gptq"})
"""Methods that need `moments`; the others look at weights alone."""

NORMAL_FLOAT: Final = ("rtn", "clip")
"""Methods that know `numbers: nf4`."""

WITH_ZERO_POINTS: Final = ("rtn", "clip", "hqq")
"""Methods that know `symmetric: false`."""

SCALED: Final = "awq"
"""Method `clip`, behind `pipeline.stages.scale_channels`."""


def _default_block_size(given: dict[str, Any]) -> BlockSize | None:
    """4 bits need blocks unless it is said otherwise; the key holds what is meant."""
    return DEFAULT_BLOCK_SIZE if given.get("bits") == 4 else None


class WeightOnlyOptions(StageConfig):
    """What a recipe may say about weights in few bits, for every runtime."""

    bits: WeightBits = Field(default=4, description="bits for each weight")
    block_size: BlockSize | None = Field(
        default_factory=_default_block_size,
        description="how many weights along the input share one scale; null means one scale for "
        f"each output. 4 bits: {DEFAULT_BLOCK_SIZE} by default; 8 bits: null by default, and for "
        "TensorRT always",
    )
    method: Literal["rtn", "clip", "hqq", "k_quant", "gptq", "awq"] = Field(
        default="clip",
        description="how weights are rounded: rtn by the largest weight of each block; clip by the "
        "scale with the least squared error, which may cut the largest weights off; k_quant likewise, "
        "with large weights counting more; hqq by a loss that forgives outliers; gptq as clip, and "
        "each weight makes up for the errors of those before it, by `data.calibration`; awq as clip, "
        "after channels were scaled by how large they are in `data.calibration`",
    )
    numbers: Literal["integers", "nf4"] = Field(
        default="integers",
        description="what 4 bits stand for: nf4 are 16 numbers that lie as normally distributed weights "
        "do, for ONNX Runtime, in blocks, with method rtn or clip",
    )
    symmetric: bool = Field(
        default=True,
        description="false gives each block of 4-bit integers a zero point of its own, for ONNX "
        "Runtime, with method rtn, clip or hqq; 8 bits stay symmetric",
    )
    embeddings: Literal["float", "int8", "int4"] = Field(
        default="float",
        description="how tables that are looked up by token are stored: int8 with one scale a row, "
        "int4 in blocks of 32; for ONNX Runtime",
    )
    lm_head: Literal["float", "int8", "int4"] | None = Field(
        default=None,
        description="how the product that makes the logits of tokens is stored; null: as the others",
    )
    op_types: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm"), description="operators whose weights are quantised"
    )
    exclude_nodes: tuple[str, ...] = Field(
        default=(),
        description="names of nodes that stay float; `*`, `?` and `[...]` match as in file names, "
        "and a pattern that matches nothing is an error",
    )

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if fault := _normal_float_fault(self) or _zero_point_fault(self):
            raise ValueError(fault)
        return self


def _normal_float_fault(options: WeightOnlyOptions) -> str:
    """Why NF4 does not fit the rest; empty when it does."""
    if options.numbers != "nf4":
        return ""
    faults = {
        "has 4 bits: take `bits: 4`, or leave `numbers` out": options.bits != 4,
        "has no zero points: leave `symmetric` out": not options.symmetric,
        "needs a `block_size`: its scales are those of blocks": options.block_size is None,
        f"takes method {' or '.join(NORMAL_FLOAT)}: {options.method} rounds to integers": (
            options.method not in NORMAL_FLOAT
        ),
        "has no LM head in integers: leave `lm_head` out, or take `lm_head: float`": (
            options.lm_head in {"int8", "int4"}
        ),
    }
    return next((f"`numbers: nf4` {fault}" for fault, is_so in faults.items() if is_so), "")


def _zero_point_fault(options: WeightOnlyOptions) -> str:
    """Why zero points do not fit the rest; empty when they do."""
    if options.symmetric:
        return ""
    if options.bits != 4:
        return "`symmetric: false` is for bits 4: with 8 bits a zero point gains next to nothing"
    if options.method not in WITH_ZERO_POINTS:
        return (
            f"`symmetric: false` takes method {', '.join(WITH_ZERO_POINTS[:-1])} or "
            f"{WITH_ZERO_POINTS[-1]}: {options.method} has no zero points"
        )
    return ""


class QuantizeWeightsConfig(WeightOnlyOptions):
    """How weights are stored."""

    signed_scales: bool = Field(
        default=False,
        description="whether scales of symmetric integers of 4 bits may be negative, so that the largest "
        "weight of a block has the integer -8, which 7 lacks; for ONNX Runtime's own operator",
    )

    @model_validator(mode="after")
    def _is_its_own_work(self) -> Self:
        if self.method == SCALED:
            msg = f"method {SCALED} is `clip`, after channels were scaled by another stage"
            raise ValueError(msg)
        return self


def run(
    config: QuantizeWeightsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Quantises the weights of `model`; facts name what was quantised, what was not, and why.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when a pattern matches nothing, no weight could be quantised, or the
            moments of a product are missing.
        StageError: when the graph's operators forbid the opset that is needed, or the result is
            not valid.
    """
    from pipeline.graph.mapped_model import load_mapped_model

    model = load_mapped_model(inputs[MODEL_PORT] / MODEL_FILE)
    return quantize_model(model, config, inputs, output, context)


def quantize_model(
    model: ir.Model,
    config: QuantizeWeightsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Quantise the weights of a graph in place and write it; facts and errors are those of `run`.

    Args:
        model: Not to be used afterwards.
        config: How.
        inputs: Of port `model` only the size is asked.
        output: Where no model is yet.
        context: Of the stage.
    """
    from pipeline.calibration.moments import Moments
    from pipeline.graph.files import save_ir_model
    from pipeline.graph.validity import require_valid
    from pipeline.graph.vocabulary import float_share, head_facts
    from pipeline.graph.weight_only import quantize_weights

    moments = Moments(inputs[MOMENTS_PORT]) if MOMENTS_PORT in inputs else None
    request = as_request(config, read_wide(inputs))
    head = head_facts(model)
    result = quantize_weights(model, request, moments, threads=context.threads)
    for node, reason in result.kept_float:
        context.log(f"{node} stays float: {reason}")
    result.require_any(
        "only products with constant weights are stored in few bits, and in blocks only where "
        "`block_size` divides their inputs: take a smaller one, or another precision"
    )
    # The checker does not know the operators of other domains.
    is_standard = {node.domain for node in model.graph.all_nodes()} <= {"", "ai.onnx"}
    path = save_ir_model(model, output)
    if is_standard:
        require_valid(path)
    float_bytes = float_share(model.graph)
    size_ratio = model_size_bytes(output) / model_size_bytes(inputs[MODEL_PORT])
    facts = result.as_json(size_ratio)
    coverage = facts.pop("coverage")
    assert isinstance(coverage, dict)
    return {
        "bits": config.bits,
        "block_size": config.block_size,
        "method": config.method,
        "numbers": config.numbers,
        "symmetric": config.symmetric,
        "signed_scales": config.signed_scales,
        "eight_bits": sorted(request.wide),
        "bits_per_weight": result.bits_per_weight,
        "lm_head": head,
        **facts,
        "coverage": {**coverage, "float_bytes": float_bytes},
    }


def as_request(
    config: QuantizeWeightsConfig, wide: frozenset[str] = frozenset()
) -> WeightOnlyRequest:
    """What is asked of the graph.

    Args:
        config: What was asked of the stage.
        wide: Names of the layers that have 8 bits where others have 4.
    """
    from pipeline.graph.weight_only import WeightOnlyRequest

    fields = config.model_dump(include=set(QuantizeWeightsConfig.model_fields))
    return WeightOnlyRequest(**fields, wide=wide)


def read_wide(inputs: Mapping[str, Path]) -> frozenset[str]:
    """Names of the layers that have 8 bits where others have 4; none without the port.

    Raises:
        StageError: when the file is not one that `choose_bits` writes.
    """
    import json

    from pipeline.errors import StageError

    if BITS_PORT not in inputs:
        return frozenset()
    try:
        names = json.loads((inputs[BITS_PORT] / BITS_FILE).read_text("utf-8"))["eight_bits"]
        return frozenset(map(str, names))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise StageError(f"not a choice of bits: {err}", where=BITS_FILE) from err


QUANTIZE_WEIGHTS = Stage(
    name="quantize_weights",
    version=8,
    footprint=Footprint(
        base_mib=400,
        memory_per_weight=2.0,
        memory_outside=0.16,
        memory_per_largest=2.2,
        disk_per_weight=0.3,
        memory_to_run=0.35,
    ),
    config_type=QuantizeWeightsConfig,
    coverage=("quantized_weights", "quantized_matmuls", "size_ratio", "float_bytes"),
    run=run,
    packages=("onnx", "onnx-ir", "numpy", "ml-dtypes", "scipy"),
    preload=("pipeline.graph.files", "pipeline.graph.weight_only"),
)
"""Port `model` -> `model.onnx` whose weights are integers with DequantizeLinear behind them."""
