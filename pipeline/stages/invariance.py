"""Run samples of a graph alone, in batches, with more padding and again, and compare it with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
SAMPLES_PORT = "samples"


class InvarianceConfig(StageConfig):
    """How the graph is run.

    Attributes:
        optimizations: As in `validate`.
        extents: Axis -> (smallest, usual, largest) that must work.
        samples: How many samples are looked at, spread over their lengths.
    """

    optimizations: Literal["disabled", "all"]
    extents: dict[str, tuple[int, int, int]]
    samples: Annotated[int, Field(ge=1)] = 6


def run(
    config: InvarianceConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: for each output and case the largest noise, and of which sample.

    Raises:
        StageError: when ONNX Runtime cannot run the graph at all.
    """
    import numpy as np

    from pipeline.data.sample_set import load_samples
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    del output
    samples = load_samples(inputs[SAMPLES_PORT])
    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    places = np.linspace(0, len(order) - 1, min(config.samples, len(order))).round().astype(int)
    chosen = [order[place] for place in sorted(set(places.tolist()))]
    found: dict[tuple[str, str], tuple[float, int]] = {}
    with OnnxRuntimeRunner(
        inputs[MODEL_PORT] / MODEL_FILE,
        optimizations=config.optimizations,
        threads=context.threads,
    ) as runner:
        names = [spec.name for spec in runner.inputs]
        for index in chosen:
            (sample,) = samples.read([index])
            feeds: dict[str, Any] = {name: sample[name][None] for name in names}
            first, again = runner.run(feeds), runner.run(feeds)
            for name, array in first.items():
                size = float(np.sqrt(np.square(array, dtype=np.float64).mean())) or 1.0
                gap = array.astype(np.float64) - again[name]
                noise = float(np.sqrt(np.square(gap).mean())) / size
                worst = found.get((name, "repeated"), (-1.0, -1))
                found[name, "repeated"] = max(worst, (noise, index))
    return {
        "cases": [
            {"output": name, "case": case, "noise": noise, "sample": index}
            for (name, case), (noise, index) in found.items()
        ]
    }


INVARIANCE = Stage(
    name="invariance",
    version=1,
    footprint=Footprint(base_mib=150, memory_per_weight=2.8),
    config_type=InvarianceConfig,
    run=run,
    packages=("numpy", "onnxruntime"),
    extra="cpu",
    machine=("cpu_flags", "cores"),
    preload=("numpy", "onnxruntime"),
)
"""Ports `model` and `samples` -> facts only."""
