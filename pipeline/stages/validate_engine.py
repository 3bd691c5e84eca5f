"""Run an engine on this machine's GPU on the samples and measure how far it is from the reference.

Input `model`: the output of the stage that built the engine. The key holds the engine's digest, the
GPU and its driver, so what was measured of one engine is never said of another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from pipeline.stages.base import ENGINE_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.runtimes.base import Array, ModelTensor
    from pipeline.runtimes.tensorrt import TensorRTRunner
    from pipeline.stages.base import StageContext

PARITY_FILE = "parity.json"
MODEL_PORT = "model"
SAMPLES_PORT = "samples"
REFERENCE_PORT = "reference"
PROBES_PORT = "probes"


class ValidateEngineConfig(StageConfig):
    """How the engine is run.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        runtime: Which of the two runtimes reads the engine.
        batch_size: Samples a run, of mixed lengths, padded on the right.
        smallest_batch: The smallest that a profile takes. The last batch of all, and probes, are
            filled up to it with copies of their last row, whose results are thrown away.
        outputs: Outputs that the engine must have; None means all that the reference has.
    """

    task: str
    runtime: Literal["tensorrt-rtx", "tensorrt"]
    batch_size: Annotated[int, Field(ge=1)]
    smallest_batch: Annotated[int, Field(ge=1)] = 1
    outputs: tuple[str, ...] | None = None


def run(
    config: ValidateEngineConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `parity.json`, as the stage `validate` does. A wrong engine is a result, no failure.

    Raises:
        ArtifactError: the engine is not the file that was built.
        EnvironmentMissing: it cannot be loaded on this machine; the message says why.
        StageError: TensorRT refuses it, or samples and reference do not belong together.
    """
    from pipeline.engines.vouching import vouched_digest
    from pipeline.runtimes.tensorrt import TensorRTRunner
    from pipeline.stages.parity_work import compare, load_pair, parity_facts

    pair = load_pair(inputs[SAMPLES_PORT], inputs[REFERENCE_PORT])
    digest = vouched_digest(inputs[MODEL_PORT])
    with TensorRTRunner(inputs[MODEL_PORT] / ENGINE_FILE, sha256=digest) as runner:
        parity = compare(
            _FilledBatches(runner, config.smallest_batch),
            pair,
            config,
            probes=inputs.get(PROBES_PORT),
            session=runner.session,
            context=context,
        )
    (output / PARITY_FILE).write_text(f"{parity.model_dump_json(indent=1)}\n", encoding="utf-8")
    return parity_facts(parity) | {"engine_sha256": digest}


class _FilledBatches:
    """A runner that fills batches up to the smallest one that its engine takes."""

    def __init__(self, runner: TensorRTRunner, smallest: int) -> None:
        self._runner = runner
        self._smallest = smallest

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        return self._runner.outputs

    @property
    def session(self) -> str:
        return self._runner.session

    @property
    def load_time_ms(self) -> float:
        return self._runner.load_time_ms

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        rows = min((array.shape[0] for array in feeds.values() if array.ndim), default=0)
        missing = self._smallest - rows
        if missing <= 0 or not rows:
            return self._runner.run(feeds)
        filled = {
            name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
            for name, array in feeds.items()
        }
        return {name: array[:rows] for name, array in self._runner.run(filled).items()}


VALIDATE_ENGINE = Stage(
    name="validate_engine",
    version=1,
    footprint=Footprint(base_mib=600, memory_per_weight=1.0),
    config_type=ValidateEngineConfig,
    run=run,
    packages=("cuda-bindings", "numpy", "scipy"),
    extra="cuda",
    optional_packages=("ml-dtypes", "tensorrt", "tensorrt-rtx"),
    machine=("gpu_name", "gpu_target", "nvidia_driver"),
    preload=("numpy",),
)
