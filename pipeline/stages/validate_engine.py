"""Run an engine on this machine's GPU on the samples and measure how far it is from the reference.

Input `model`: the output of the stage that built the engine. The key holds the engine's digest, the
GPU and its driver, so what was measured of one engine is never said of another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from pipeline.stages.base import ENGINE_FILE, Footprint, Stage, StageConfig
from pipeline.stages.compared import (
    MODEL_PORT,
    PARITY_FILE,
    PROBES_PORT,
    REFERENCE_PORT,
    SAMPLES_PORT,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.runtimes.base import Array, ModelTensor
    from pipeline.runtimes.tensorrt import Profile, TensorRTRunner
    from pipeline.stages.base import StageContext


class ValidateEngineConfig(StageConfig):
    """How the engine is run.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        runtime: Which of the two runtimes reads the engine.
        batch_size: Samples a run, of mixed lengths, padded on the right; see `_Fitted` for what no
            profile of the engine takes.
        outputs: Outputs that the engine must have; None means all that the reference has.
    """

    task: str
    runtime: Literal["tensorrt-rtx", "tensorrt"]
    batch_size: Annotated[int, Field(ge=1)]
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
            _Fitted(runner, {n: spec.fill for n, spec in pair.samples.index.inputs.items()}),
            pair,
            config,
            probes=inputs.get(PROBES_PORT),
            session=runner.session,
            context=context,
        )
    (output / PARITY_FILE).write_text(f"{parity.model_dump_json(indent=1)}\n", encoding="utf-8")
    return parity_facts(parity) | {"engine_sha256": digest}


class _Fitted:
    """A runner that feeds an engine in shapes that one of its profiles takes.

    Rows and positions that are missing are filled up: rows with copies of the last one, positions as
    those of every batch of mixed lengths are. Rows that are too many are run in parts. What comes
    out is cut to what was asked for. Feeds that cannot be made to fit are refused by the engine.

    Args:
        runner: The engine.
        fills: Input -> what positions of padding hold.
    """

    def __init__(self, runner: TensorRTRunner, fills: Mapping[str, float]) -> None:
        self._runner = runner
        self._fills = fills

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

        shapes = {name: array.shape for name, array in feeds.items()}
        fitting = [_grown(shapes, profile) for profile in self._runner.profiles]
        wanted = min(filter(None, fitting), key=_volume, default=None)
        if wanted is not None:
            filled = {
                name: _filled(array, wanted[name], self._fills[name])
                for name, array in feeds.items()
            }
            return self._cut(self._runner.run(filled), shapes)
        alone = {name: (1, *shape[1:]) for name, shape in shapes.items()}
        most = max(
            (
                min(profile.largest[name][0] for name in shapes)
                for profile in self._runner.profiles
                if _grown(alone, profile)
            ),
            default=0,
        )
        rows = max(shape[0] for shape in shapes.values())
        if not 0 < most < rows:
            return self._runner.run(feeds)
        parts = [
            self.run({name: array[start : start + most] for name, array in feeds.items()})
            for start in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _cut(
        self, results: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """Outputs without what was filled up, by the names of their axes; the first one is rows."""
        sizes = {
            axis: size
            for spec in self.inputs
            for axis, size in zip(spec.shape or (), shapes[spec.name], strict=False)
            if isinstance(axis, str)
        }
        rows = min(shape[0] for shape in shapes.values())
        axes = {spec.name: spec.shape or () for spec in self.outputs}
        return {
            name: array[
                (
                    slice(rows),
                    *(slice(sizes.get(axis)) for axis in map(str, axes[name][1:])),
                )
            ]
            for name, array in results.items()
        }


def _grown(
    shapes: Mapping[str, tuple[int, ...]], profile: Profile
) -> dict[str, tuple[int, ...]] | None:
    """The least shapes of a profile that hold these; None when it has none."""
    grown = {}
    for name, shape in shapes.items():
        smallest, largest = profile.smallest.get(name, ()), profile.largest.get(name, ())
        if len(shape) != len(smallest) or any(
            size > most for size, most in zip(shape, largest, strict=True)
        ):
            return None
        grown[name] = tuple(map(max, shape, smallest))
    return grown


def _volume(shapes: Mapping[str, tuple[int, ...]]) -> int:
    from math import prod

    return sum(map(prod, shapes.values()))


def _filled(array: Array, shape: tuple[int, ...], fill: float) -> Array:
    import numpy as np

    missing = [(0, whole - size) for whole, size in zip(shape, array.shape, strict=True)]
    longer = np.pad(array, [(0, 0), *missing[1:]], constant_values=fill)
    return np.pad(longer, [missing[0], *((0, 0) for _ in missing[1:])], mode="edge")


VALIDATE_ENGINE = Stage(
    name="validate_engine",
    version=2,
    footprint=Footprint(base_mib=600, memory_per_weight=1.0),
    config_type=ValidateEngineConfig,
    run=run,
    packages=("cuda-bindings", "numpy"),
    extra="cuda",
    optional_packages=("ml-dtypes", "tensorrt", "tensorrt-rtx"),
    machine=("gpu_name", "gpu_target", "nvidia_driver"),
    preload=("numpy",),
)
