"""Find the ranges of the activations that static quantisation needs, on real samples.

Ports: `model` (`model.onnx` in float32, simplified but not yet fused or cast) and `samples`.
Output: `ranges.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.calibration.ranges import Ranges, TensorRange
    from pipeline.calibration.statistics import TensorStatistics
    from pipeline.graph.weighted_layers import NeededTensor
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
SAMPLES_PORT = "samples"

DEFAULT_PERCENTILE: Final = 99.999

_WIDEST: Final = 5
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


class CalibrateConfig(StageConfig):
    """How ranges are chosen."""

    method: Literal["minmax", "entropy", "percentile", "mse"] = Field(
        default="mse",
        description="how a range follows from what the samples show: `minmax` all of it, "
        "`percentile` without the rarest, `entropy` and `mse` where clipping loses least. Figures: "
        "MiniLM, mean over the tokens of real sentences against torch, cosine for ONNX Runtime / "
        "TensorRT: mse 0.991 / 0.981, minmax 0.990 / 0.973, percentile 0.990 / 0.975, entropy 0.931",
    )
    percentile: Annotated[float, Field(gt=50, le=100)] | None = Field(
        default=None,
        description="for method percentile: percent of the numbers that are kept, 99.999 unless "
        "said; 99.99 gives MiniLM 0.932",
    )

    @model_validator(mode="after")
    def _percentile_fits_method(self) -> Self:
        if self.percentile is not None and self.method != "percentile":
            msg = f"method {self.method} takes no `percentile`"
            raise ValueError(msg)
        return self


def run(
    config: CalibrateConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `ranges.json`; facts name the tensors, the samples and the widest ranges.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when there is nothing to calibrate with, or a sample fails.
    """
    from pipeline.calibration.observe import observe_samples
    from pipeline.calibration.ranges import save_ranges
    from pipeline.data.sample_set import load_samples
    from pipeline.graph.observed import read_needed_tensors, write_observed_model
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    samples = load_samples(inputs[SAMPLES_PORT])
    needed = read_needed_tensors(inputs[MODEL_PORT] / MODEL_FILE)
    inner = [tensor.name for tensor in needed if tensor.is_inner]
    observed = write_observed_model(inputs[MODEL_PORT], inner, context.scratch)
    # One thread a run: the last bits would depend on the number of cores otherwise.
    with OnnxRuntimeRunner(observed, optimizations="disabled", threads=1) as runner:
        statistics = observe_samples(
            runner,
            samples,
            [tensor.name for tensor in needed],
            has_histogram=config.method != "minmax",
            threads=context.threads,
            progress=lambda done, total: context.progress(done, total, "samples"),
        )
    ranges = _choose(config, needed, statistics, len(samples))
    save_ranges(ranges, output)
    return _facts(ranges)


def _choose(
    config: CalibrateConfig,
    needed: Sequence[NeededTensor],
    statistics: Mapping[str, TensorStatistics],
    samples: int,
) -> Ranges:
    from pipeline.calibration.ranges import Ranges

    return Ranges(
        method=config.method,
        percentile=_percentile(config),
        samples=samples,
        tensors=tuple(_range(tensor, statistics[tensor.name], config) for tensor in needed),
    )


def _range(
    tensor: NeededTensor, statistics: TensorStatistics, config: CalibrateConfig
) -> TensorRange:
    from pipeline.calibration.methods import choose_range
    from pipeline.calibration.ranges import TensorRange, summarize
    from pipeline.errors import QuantizationError

    if not statistics.count:
        raise QuantizationError(f"no sample has a single element in tensor `{tensor.name}`")
    chosen = choose_range(statistics, config.method, _percentile(config))
    bins = None if statistics.histogram is None else statistics.histogram.finish()
    return TensorRange(
        names=tensor.names,
        count=statistics.count,
        minimum=statistics.low,
        maximum=statistics.high,
        low=chosen.low,
        high=chosen.high,
        magnitude=chosen.magnitude,
        clipped=0.0 if bins is None else bins.share_beyond(chosen.magnitude),
        histogram=None if bins is None else summarize(bins, _PERCENTILES),
    )


def _percentile(config: CalibrateConfig) -> float | None:
    if config.method != "percentile":
        return None
    return DEFAULT_PERCENTILE if config.percentile is None else config.percentile


def _facts(ranges: Ranges) -> dict[str, JSON]:
    widest = sorted(ranges.tensors, key=lambda tensor: -max(-tensor.minimum, tensor.maximum))
    return {
        "method": ranges.method,
        "percentile": ranges.percentile,
        "samples": ranges.samples,
        "tensors": [tensor.names[0] for tensor in ranges.tensors],
        "widest": [
            {
                "tensor": tensor.names[0],
                "seen": [tensor.minimum, tensor.maximum],
                "range": [tensor.low, tensor.high],
                "magnitude": tensor.magnitude,
                "clipped": tensor.clipped,
            }
            for tensor in widest[:_WIDEST]
        ],
    }


CALIBRATE = Stage(
    name="calibrate",
    version=3,
    footprint=Footprint(base_mib=150, memory_per_weight=2.0),
    config_type=CalibrateConfig,
    run=run,
    packages=("numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    # The last bits of an activation depend on the instruction set.
    machine=("cpu_flags",),
    preload=("onnxruntime", "pipeline.graph.observed", "pipeline.calibration.observe"),
)
"""Ports `model` and `samples` -> `ranges.json`."""
