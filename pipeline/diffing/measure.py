"""Run the old and the new graph of a target: their outputs on the same inputs, and their speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.diffing.types import OutputDistance
from pipeline.errors import StageError
from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.bench.types import BenchmarkResult
    from pipeline.stages.benchmark import BenchmarkConfig

COMPARED_SAMPLES = 16
MARGIN = 0.05
"""Differences of speed within this share count as the same."""


def compare_outputs(old: Path, new: Path, samples: Path) -> tuple[OutputDistance, ...]:
    """The new graph's outputs against the old one's, each sample alone.

    Args:
        old: Directory of the old graph.
        new: Directory of the new one.
        samples: Directory of a sample set.

    Raises:
        StageError: a graph cannot be run, or the samples do not fit it.
    """
    import numpy as np

    from pipeline.data.sample_set import load_samples
    from pipeline.parity.compare import vectors_last
    from pipeline.parity.metrics import DistanceSums, sum_distances
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    open_samples = load_samples(samples)
    indices = range(min(COMPARED_SAMPLES, len(open_samples)))
    found: list[dict[str, list[np.ndarray]]] = []
    for home in (old, new):
        outputs: dict[str, list[np.ndarray]] = {}
        with OnnxRuntimeRunner(home / MODEL_FILE, optimizations="all", threads=None) as runner:
            for sample in open_samples.read(indices):
                feeds = {spec.name: sample[spec.name][np.newaxis] for spec in runner.inputs}
                for name, array in runner.run(feeds).items():
                    outputs.setdefault(name, []).append(array[0])
        found.append(outputs)
    before, after = found
    distances = []
    for name in before:
        if name not in after:
            continue
        total = DistanceSums()
        for left, right in zip(after[name], before[name], strict=True):
            if left.shape != right.shape:
                raise StageError(
                    f"output `{name}` has shape {list(left.shape)}, it had {list(right.shape)}"
                )
            if not np.isfinite(right).all():
                raise StageError(f"output `{name}` of the old graph is not finite")
            total += sum_distances(vectors_last(left), vectors_last(right))
        distances.append(OutputDistance(output=name, metrics=total.metrics()))
    return tuple(distances)


def compare_speed(
    old: Path,
    new: Path,
    samples: Path,
    config: BenchmarkConfig,
    *,
    scratch: Path,
    progress: Callable[[int, int, str], None],
) -> BenchmarkResult:
    """The new graph against the old one, in the same launches, as the `benchmark` stage does it.

    `reference` in the result is the old graph, `candidate` the new one: a speed-up above 1 means
    that the new one is faster.

    Raises:
        StageError: a launch fails, or the samples do not fit a graph.
    """
    from pipeline.bench.session import measure_pair

    return measure_pair(
        config,
        {"reference": old, "model": new, "samples": samples},
        scratch=scratch,
        progress=progress,
    )
