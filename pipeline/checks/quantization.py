"""The quantisation itself: weights, scales and graph against what they were made from, exactly.

After quantisation a fault of a graph is smaller than the noise that is expected of it, so the outputs
cannot show it. Everything that was not rounded must still be as it was, everything that was rounded
must be within half a step, and scales must fit the data. Limits are by evidence, measured on MiniLM and
four trained models, dynamic, static for ONNX Runtime and static for TensorRT; weights in 4 bits and
floats besides have the same limits, by other rules (`pipeline.graph.weight_only_audit`):

| kind                  | good ones                  | faults                                    | limit  |
|-----------------------|----------------------------|-------------------------------------------|--------|
| `missing_layers`      | 0                          | 1 and more                                | 0      |
| `wrong_formats`       | 0                          | 1 and more                                | 0      |
| `weight_error`, steps | 0.5                        | scale x 2: 64; zero point off by one:     | 0.51   |
|                       |                            | 1.5; two heads swapped, with their        |        |
|                       |                            | scales: 246 to 279; transposed: 228 to    |        |
|                       |                            | 250                                       |        |
| `weight_step`, ratio  | 1.0000001                  | scale x 2: 2; heads swapped: 1.5          | 1.05   |
| `bias_error`, steps   | 0.5                        | integers off by two: 2                    | 0.51   |
| `changed_constants`   | 0                          | 1 and more                                | 0      |
| `changed_nodes`       | 0                          | 1 and more; epsilon x 10, whose noise     | 0      |
|                       |                            | would pass                                |        |
| `noise`               | 0; where outliers have     | Relu for Gelu: 0.05 to 0.7; a bias of     | of the |
|                       | float parts 1.8e-6         | zeros: 0.01 to 0.5                        | floor  |
| `activation_scales`   | 0                          | scale x 2: 1; zero point off by one: 1    | 0.001  |
| `impossible_ranges`   | 0                          | range x 2, method minmax: 1               | 1e-6   |
| `activation_loss`, dB | 2.0 (3.5 with 16 samples)  | scale x 2: 5 to 6 for most tensors;       | 4      |
|                       |                            | see `pipeline.calibration.fit`            |        |
| `activation_clipping` | up to 0.01, or 0.3 where   | up to 0.7; a loss in dB says it better    | none   |
|                       | many numbers lie at an end |                                           |        |
| `unseen_values`       | 1.0 to 1.7                 | ranges of two tensors swapped: 28         | 4      |
| `calibration_samples` | 32 and more                | 1                                         | 8      |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.parity.tolerances import TOLERANCES
from pipeline.stages.check_quantization import (
    CHECK_QUANTIZATION,
    FLOAT_PORT,
    MODEL_PORT,
    PROBES_PORT,
    RANGES_PORT,
    SAMPLES_PORT,
    CheckQuantizationConfig,
)
from pipeline.stages.given_back import REPAIR_PORT
from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
from pipeline.stages.quantize_static import QuantizeStaticConfig
from pipeline.stages.quantize_weights import BITS_PORT, MOMENTS_PORT, QuantizeWeightsConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.parity.types import GateResult
    from pipeline.stages.base import StageConfig

NAME = "quantization"

Count = Annotated[int, Field(ge=0)] | None
Number = Annotated[float, Field(ge=0)] | None


class QuantizationLimits(Limits):
    """How far a quantised graph may be from what it was made from; null only measures.

    Attributes:
        noise: In place of what the noise floor of the checkpoint gives; null does not leave it out.
    """

    missing_layers: Count = Field(
        default=0, description="layers that were to be quantised and are not"
    )
    wrong_formats: Count = Field(
        default=0,
        description="wrong types, numbers of scales, axes, zero points and bits used",
    )
    weight_error: Number = Field(
        default=0.51, description="largest distance of a weight from its float weight, in steps"
    )
    weight_step: Number = Field(
        default=1.05, description="largest step over the smallest that would do"
    )
    bias_error: Number = Field(
        default=0.51,
        description="largest distance of a bias in int32 from its float bias, in steps",
    )
    changed_constants: Count = Field(
        default=0, description="numbers that are not quantised and differ in a bit"
    )
    changed_nodes: Count = Field(
        default=0, description="differences between the graphs besides the quantisation"
    )
    noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest RMSE, over the size of the output, of the graph whose quantisation "
        "was taken out; default: what float32 may have over the noise floor",
    )
    activation_scales: Number = Field(
        default=1e-3,
        description="largest relative distance of a scale from what its range gives, plus that of "
        "its zero point in steps",
    )
    impossible_ranges: Number = Field(
        default=1e-6,
        description="how far a range reaches beyond all that calibration saw, as a share of it",
    )
    activation_loss: Number = Field(
        default=4.0,
        description="signal to noise ratio of a rounded tensor, dB below what its method makes of "
        "the evaluation samples themselves",
    )
    activation_clipping: Number = Field(
        default=None, description="largest share of a tensor's numbers that are cut off"
    )
    unseen_values: Number = Field(
        default=4.0,
        description="how many times as far the evaluation samples reach as calibration saw",
    )
    calibration_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=8, description="smallest number of samples that ranges may come from"
    )


_MEASURES: Final[Mapping[str, tuple[str, str]]] = {
    "missing_layers": ("layers that were to be quantised are not", ""),
    "wrong_formats": ("numbers are stored in another form than was asked for", ""),
    "weight_error": ("a weight is not the float weight, rounded", "steps"),
    "weight_step": ("a weight is rounded more coarsely than it needs to be", "times"),
    "bias_error": ("a bias is not the float bias, rounded", "steps"),
    "changed_constants": ("numbers that are not quantised changed", ""),
    "changed_nodes": ("the graph changed besides its quantisation", ""),
    "activation_scales": ("a scale is not the one of its range", ""),
    "impossible_ranges": ("a range reaches beyond what calibration saw", ""),
    "activation_loss": ("a scale does not fit the evaluation samples", "dB"),
    "unseen_values": ("calibration saw other numbers than the evaluation samples make", "times"),
    "activation_clipping": ("a scale cuts off too many numbers", ""),
}
"""Kind of a measure -> (what is wrong when it is too large, its unit)."""

_COUNTED: Final = frozenset(
    {"missing_layers", "wrong_formats", "changed_constants", "changed_nodes"}
)
"""Kinds whose rows are added up; of the others the worst row counts."""


def _plan(subject: Subject, limits: QuantizationLimits) -> Iterator[PlannedCheck]:
    """Of every graph that a quantising stage made."""
    del limits
    for link in subject.links:
        config = link.config
        asked = _asked(config)
        if asked is None:
            continue
        inputs = {
            MODEL_PORT: link.node,
            FLOAT_PORT: link.inputs["model"],
            SAMPLES_PORT: subject.samples,
            PROBES_PORT: subject.probes,
        }
        kept = (RANGES_PORT, REPAIR_PORT, MOMENTS_PORT, BITS_PORT)
        inputs |= {port: link.inputs[port] for port in kept if port in link.inputs}
        yield PlannedCheck(link=link, config=asked, inputs=inputs)


def _asked(config: StageConfig) -> CheckQuantizationConfig | None:
    """What the check is asked of the stage with this config; None when it quantises nothing."""
    if isinstance(config, QuantizeStaticConfig):
        return CheckQuantizationConfig(static=config)
    if isinstance(config, QuantizeDynamicConfig):
        return CheckQuantizationConfig(dynamic=config)
    if isinstance(config, QuantizeWeightsConfig):
        return CheckQuantizationConfig(weight_only=config)
    return None


def _judge(measured: Measured, limits: QuantizationLimits) -> tuple[GateResult, ...]:
    facts = measured.facts
    results = [
        _judge_measure(measured, kind, facts["measures"][kind], getattr(limits, kind))
        for kind in _MEASURES
        if kind in facts["measures"]
    ]
    results += [_judge_noise(measured, each, limits.noise) for each in facts["noise"]]
    samples, least = facts["calibration_samples"], limits.calibration_samples
    if samples is not None:
        is_good = least is None or samples >= least
        results.append(
            measured.result(
                NAME,
                "calibration_samples",
                float(samples),
                "only measured" if least is None else f">= {least}",
                "" if is_good else "ranges that come from so few samples fit no others",
            )
        )
    return tuple(results)


def _judge_measure(
    measured: Measured, kind: str, found: Mapping[str, Any], limit: float | None
) -> GateResult:
    what, unit = _MEASURES[kind]
    worst = found["worst"][0] if found["worst"] else None
    value: float | None = 0.0 if worst is None else worst["value"]
    if kind in _COUNTED and value is not None:
        value = float(found["total"])
    is_good = limit is None or (value is not None and value <= limit)
    reason = ""
    if not is_good and worst is not None:
        reason = f"{what}: {worst['detail']}, in layer `{worst['layer']}`"
    return measured.result(
        NAME,
        kind,
        value,
        "only measured" if limit is None else f"<= {limit:g}{' ' if unit else ''}{unit}",
        reason,
        layer="" if worst is None or is_good else worst["layer"],
    )


def _judge_noise(
    measured: Measured, found: Mapping[str, Any], own_limit: float | None
) -> GateResult:
    """One output of the graph whose quantisation was taken out, as float32 is judged."""
    floor = measured.floors.get(found["output"])
    limit = own_limit
    if limit is None:
        limit = TOLERANCES["float32"].limit(max(floor.float64, floor.threads) if floor else 0.0)
    noise = found["noise"]
    is_good = noise is not None and noise <= limit
    reason = "without its quantisation the graph computes something else than the float graph"
    return measured.result(
        NAME,
        f"{found['output']}.noise",
        noise,
        f"<= {limit:.3g}",
        "" if is_good else f"{reason}, on {found['where']}",
    )


QUANTIZATION = Check(name=NAME, stage=CHECK_QUANTIZATION, plan=_plan, judge=_judge)
