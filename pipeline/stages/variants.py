"""How the stages that try out quantisations make them: exactly as the stage that ships one does.

Ports `model`, `ranges` (of a static quantisation) and `samples`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from pipeline.stages.base import MODEL_FILE, StageConfig
from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
from pipeline.stages.quantize_static import QuantizeStaticConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from pipeline.calibration.ranges import Ranges
    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.quantization_result import QuantizationResult
    from pipeline.graph.variants import Quantize, Variants
    from pipeline.parity.trials import Trials
    from pipeline.stages.base import StageContext
    from pipeline.tasks import Answer

MODEL_PORT: Final = "model"
RANGES_PORT: Final = "ranges"
SAMPLES_PORT: Final = "samples"

_NORMAL_90: Final = 1.645
"""Standard deviations below which nine in ten absolute values of a normal distribution lie."""


class VariantConfig(StageConfig):
    """Which quantisation is tried out, and how its graphs are run.

    Attributes:
        quantizer: The config of the stage that quantises.
        optimizations: ONNX Runtime's graph optimisations, as the target's graphs are validated.
    """

    quantizer: QuantizeDynamicConfig | QuantizeStaticConfig
    optimizations: Literal["disabled", "all"]


def open_variants(config: VariantConfig, inputs: Mapping[str, Path]) -> Variants:
    """Variants of the graph at the port `model`.

    Raises:
        QuantizationError: when there are no ranges where they are needed.
    """
    from pipeline.graph.variants import Variants

    quantizer = config.quantizer
    if isinstance(quantizer, QuantizeDynamicConfig):
        return Variants(inputs[MODEL_PORT], _dynamic(quantizer), {})
    from pipeline.calibration.ranges import load_ranges

    ranges = load_ranges(inputs[RANGES_PORT])
    return Variants(inputs[MODEL_PORT], _static(quantizer, ranges), _coarse(ranges))


def _dynamic(config: QuantizeDynamicConfig) -> Quantize:
    from pipeline.graph.quantization import QuantizationOptions, quantize_dynamic

    options = QuantizationOptions(**config.model_dump())

    def quantize(
        model: ir.Model, given_back: frozenset[str], has_tables: bool
    ) -> QuantizationResult:
        has_tables = has_tables and options.quantize_embeddings
        own = replace(options, given_back=given_back, quantize_embeddings=has_tables)
        return quantize_dynamic(model, own)

    return quantize


def _static(config: QuantizeStaticConfig, ranges: Ranges) -> Quantize:
    from pipeline.graph.qdq import QdqOptions, quantize_static
    from pipeline.graph.qdq_placements import PLACEMENTS

    options = QdqOptions(**config.model_dump(exclude={"placement"}))
    by_name = ranges.by_name()

    def quantize(
        model: ir.Model, given_back: frozenset[str], has_tables: bool
    ) -> QuantizationResult:
        has_tables = has_tables and options.quantize_embeddings
        own = replace(options, given_back=given_back, quantize_embeddings=has_tables)
        return quantize_static(model, PLACEMENTS[config.placement], by_name, own)

    return quantize


def _coarse(ranges: Ranges) -> dict[str, float]:
    """Name -> the rounding of an activation to 8 bits over its usual size, where it is known.

    The size is told from the 90th percentile as of a normal distribution, which rare outliers do not
    change: they are what makes the steps wide.
    """
    found = {}
    for tensor in ranges.tensors:
        usual = (
            tensor.histogram.magnitude_percentiles.get("90", 0.0) / _NORMAL_90
            if tensor.histogram
            else 0.0
        )
        if usual:
            step = 2 * tensor.magnitude / 255
            found.update(dict.fromkeys(tensor.names, step / math.sqrt(12) / usual))
    return found


def open_trials(
    variants: Variants,
    config: VariantConfig,
    inputs: Mapping[str, Path],
    context: StageContext,
    *,
    samples: int,
    answer: Answer | None = None,
) -> Trials:
    """Trials of the variants on some of the samples, the float graph run already.

    Raises:
        StageError: when the float graph cannot be run.
    """
    from pipeline.data.sample_set import load_samples
    from pipeline.parity.trials import Notes, Setting, Trials

    sample_set = load_samples(inputs[SAMPLES_PORT])
    trials = Trials(
        variants,
        sample_set,
        spread(sample_set, samples),
        scratch=context.scratch,
        setting=Setting(
            optimizations=config.optimizations, threads=context.threads, answer=answer
        ),
        notes=Notes(context.resumable),
    )
    trials.run_float(inputs[MODEL_PORT] / MODEL_FILE)
    return trials


def spread(samples: SampleSet, count: int) -> Sequence[int]:
    """Places of at most `count` samples, from the shortest to the longest."""
    import numpy as np

    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in sorted(set(places.tolist()))]
