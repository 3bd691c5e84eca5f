"""Find out how much each layer loses by its 8 bits: alone, and as the only one that does not.

Ports `model` (the float graph that is quantised), `ranges` (of a static quantisation) and `samples`.
Output: `sensitivity.json`, which is the facts.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.stages.base import Footprint, Stage, StageConfig
from pipeline.stages.variants import MODEL_PORT, VariantConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.graph.variants import QuantizedLayer
    from pipeline.hashing import JSON
    from pipeline.parity.trials import Trial, Trials
    from pipeline.stages.base import StageContext

SENSITIVITY_FILE: Final = "sensitivity.json"


class SensitivityOptions(StageConfig):
    """What a recipe may say about looking at layers one by one."""

    samples: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=16, description="calibration samples that layers are tried on"
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0,
        description="seconds after which no further layer is tried; what was measured until then is "
        "kept, the likeliest culprits first, and the report says how many are missing",
    )


class SensitivityConfig(SensitivityOptions, VariantConfig):
    """The same of one quantisation."""


def run(
    config: SensitivityConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `sensitivity.json`; the facts are the same.

    First every layer alone, the coarsest first (as told from weights and ranges); then all but one,
    in the order of what was found. When the time is up, `is_complete` is false, and a layer that
    was not tried has null for a number.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when nothing can be quantised, or ranges are missing.
        StageError: when ONNX Runtime cannot run a graph.
    """
    from pipeline.parity.trials import as_square
    from pipeline.stages.variants import open_trials, open_variants

    deadline = time.monotonic() + config.time_limit_s
    variants = open_variants(config, inputs)
    layers = variants.layers()
    names = frozenset(layer.name for layer in layers)
    trials = open_trials(variants, config, inputs, context, samples=config.samples)
    total, done = 2 * len(layers), 0
    whole, floor = trials.run(frozenset()), trials.run(names)
    alone: dict[str, Trial] = {}
    without: dict[str, Trial] = {}
    for layer in layers:
        if time.monotonic() > deadline:
            break
        alone[layer.name] = trials.run(names - {layer.name}, has_tables=False)
        done += 1
        context.progress(done, total, "trials")
    for name in sorted(alone, key=lambda name: -as_square(alone[name].noise)):
        if time.monotonic() > deadline:
            break
        without[name] = trials.run(frozenset({name}))
        done += 1
        context.progress(done, total, "trials")
    is_complete = done == total
    if not is_complete:
        context.log(
            f"the time limit of {config.time_limit_s:g} s was reached: {len(alone)} of "
            f"{len(layers)} layers were tried alone, {len(without)} were left out"
        )
    work = _products(inputs, layers, trials, context)
    rows = _rows(layers, whole, floor, alone, without, work)
    facts: dict[str, JSON] = {
        "samples": len(trials.chosen),
        "quantized": whole.model_dump(mode="json"),
        "float_layers": floor.model_dump(mode="json"),
        "layers_total": len(layers),
        "measured_alone": len(alone),
        "measured_without": len(without),
        "is_complete": is_complete,
        "layers": rows,
    }
    text = json.dumps(facts, indent=1)
    (output / SENSITIVITY_FILE).write_text(f"{text}\n", encoding="utf-8")
    return facts


def _rows(
    layers: Sequence[QuantizedLayer],
    whole: Trial,
    floor: Trial,
    alone: Mapping[str, Trial],
    without: Mapping[str, Trial],
    work: Mapping[str, int],
) -> list[JSON]:
    """A line for each layer, the worst first."""
    from pipeline.parity.trials import as_square, share_of_noise

    ranked: list[tuple[tuple[float, ...], dict[str, JSON]]] = []
    all_work = sum(work.values())
    for place, layer in enumerate(layers):
        first, last = alone.get(layer.name), without.get(layer.name)
        share = None
        if first is not None:
            rest = None if last is None else last.noise
            if last is None or last.noise is not None:
                share = share_of_noise(whole.noise, first.noise, rest, floor.noise or 0.0)
        row: dict[str, JSON] = {
            "layer": layer.name,
            "operator": layer.operator,
            "share": share,
            "is_measured": first is not None,
            "noise_alone": None if first is None else first.noise,
            "noise_without": None if last is None else last.noise,
            "cosine_gap_alone": None if first is None else first.cosine_gap,
            "cosine_gap_without": None if last is None else last.cosine_gap,
            "bytes_given_back": None if last is None else last.size_bytes - whole.size_bytes,
            "products_share": work[layer.name] / all_work if all_work else None,
        }
        size = -1.0 if first is None else as_square(first.noise)
        if share is not None and math.isfinite(size):
            size = share * as_square(whole.noise)
        # What cannot be told from numbers stands first: alone it makes the outputs NaN.
        ranked.append(((-size, place), row))
    ranked.sort(key=lambda entry: entry[0])
    return [row for _, row in ranked]


def _products(
    inputs: Mapping[str, Path],
    layers: Sequence[QuantizedLayer],
    trials: Trials,
    context: StageContext,
) -> dict[str, int]:
    """Layer -> its multiplications for a sample of middling size."""
    from pipeline.graph.observed import write_observed_model
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.stages.base import MODEL_FILE

    with OnnxRuntimeRunner(inputs[MODEL_PORT] / MODEL_FILE, optimizations="disabled") as runner:
        own = {spec.name for spec in runner.outputs}
    folder = context.scratch / "observed"
    folder.mkdir()
    extra = sorted({layer.result for layer in layers} - own)
    observed = write_observed_model(inputs[MODEL_PORT], extra, folder, is_float32=False)
    with OnnxRuntimeRunner(observed, optimizations="disabled", threads=1) as runner:
        outputs = runner.run(trials.middle_feeds([spec.name for spec in runner.inputs]))
    return {layer.name: layer.products(outputs[layer.result].size) for layer in layers}


SENSITIVITY = Stage(
    name="sensitivity",
    version=1,
    footprint=Footprint(base_mib=170, memory_per_weight=3.0),
    config_type=SensitivityConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("numpy", "onnxruntime", "pipeline.graph.variants", "pipeline.parity.trials"),
    resumable=("time_limit_s",),
)
"""Ports `model`, `ranges` and `samples` -> `sensitivity.json`."""
