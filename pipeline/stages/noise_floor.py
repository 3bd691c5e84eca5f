"""Measure how far the checkpoint in float32 is from itself: the floor under every tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from pipeline.data.reference_set import ReferenceSet
    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.runtimes.torch_model import TorchComponent
    from pipeline.stages.base import StageContext

CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"
REFERENCE_PORT = "reference"
NOISE_FILE = "noise.json"
MANY_THREADS = 2
"""Threads that the reference's one is compared with: enough to cut sums in another way."""


class NoiseFloorConfig(StageConfig):
    """Which component of the checkpoint, loaded for which task, on how many samples.

    Attributes:
        samples: Evaluation samples, spread over their lengths; all probes come on top.
        longest: Longer ones are not looked at where enough others are there; the product of all
            axes counts. Probes are long as well, and float64 takes its time.
    """

    task: str
    component: str
    samples: Annotated[int, Field(ge=1)] = 8
    longest: Annotated[int, Field(ge=1)] = 128


def run(
    config: NoiseFloorConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `noise.json`: a list of `pipeline.parity.types.NoiseFloor`, one for each output.

    The reference is float32 on one thread. The checkpoint is run again with several threads, and in
    float64. Models that cannot be run in float64 (their code makes float32 tensors by itself) are run in
    float32 with attention computed step by step instead: the same sums in another order, which is
    less than a measurement against the truth. The facts then say so in `warnings`.

    Raises:
        StageError: when torch cannot run the checkpoint in float32.
    """
    import json

    import torch

    from pipeline.errors import StageError
    from pipeline.parity.types import NoiseFloor
    from pipeline.runtimes.torch_streamed import load_streamed

    torch.set_float32_matmul_precision("highest")
    places = _chosen(config, inputs)
    loaded = load_streamed(
        inputs[CHECKPOINT_PORT],
        config.task,
        config.component,
        scratch=context.scratch,
        log=context.log,
    )
    total = 2 * len(places)
    torch.set_num_threads(MANY_THREADS)
    threads = _distances(loaded, places, torch.float32, context, (0, total))
    torch.set_num_threads(context.threads)
    warnings: list[JSON] = []
    try:
        exact = _distances(loaded, places, torch.float64, context, (len(places), total))
    except StageError as error:
        warnings.append(
            "the noise floor was measured in float32 only, against attention computed step by step: "
            f"{error.message}"
        )
        loaded = load_streamed(
            inputs[CHECKPOINT_PORT],
            config.task,
            config.component,
            scratch=context.scratch,
            attention="eager",
            log=context.log,
        )
        exact = _distances(loaded, places, torch.float32, context, (len(places), total))
    floors = [
        NoiseFloor(
            component=config.component,
            output=name,
            float64=exact[name].largest(),
            threads=threads[name].largest(),
            samples=len(exact[name].pieces),
        )
        for name in loaded.output_names
    ]
    text = json.dumps([floor.model_dump(mode="json") for floor in floors], indent=1)
    (output / NOISE_FILE).write_text(f"{text}\n", encoding="utf-8")
    facts: dict[str, JSON] = {
        "floors": {floor.output: floor.model_dump(mode="json") for floor in floors},
        "compared_with": "float32, eager attention" if warnings else "float64",
    }
    return facts | ({"warnings": warnings} if warnings else {})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one sample or probe lies, with what the reference made of it."""

    source: SampleSet
    reference: ReferenceSet
    index: int
    is_probe: bool = False

    def feeds(self) -> Mapping[str, Any]:
        """What is fed, with a batch axis."""
        (sample,) = self.source.read([self.index])
        return {name: sample[name][None] for name in self.reference.index.inputs}

    def expected(self, output: str) -> Any:
        """The reference's output, without a batch axis."""
        return self.reference.read([self.index], [output])[output][0]


@dataclass(slots=True)
class _Distance:
    """Between two ways to compute one output.

    Attributes:
        pieces: For each sample or probe the mean squared difference.
        squares: Sum of the output's squares over the samples.
        elements: Their number.
    """

    pieces: list[float] = field(default_factory=list)
    squares: float = 0.0
    elements: int = 0

    def add(self, value: Any, expected: Any, place: _Place) -> None:
        """Compare one sample; `value`, float64, is overwritten.

        What the checkpoint itself makes no number of says nothing.
        """
        import numpy as np

        if not np.isfinite(expected).all():
            return
        value -= expected
        self.pieces.append(float(np.square(value, out=value).mean()))
        if not place.is_probe:
            self.squares += float(np.square(expected, dtype=np.float64).sum())
            self.elements += expected.size

    def largest(self) -> float:
        """The largest root of a piece, over the output's own root mean square."""
        if not self.pieces or not self.squares:
            return 0.0
        return math.sqrt(max(self.pieces) * self.elements / self.squares)


def _chosen(config: NoiseFloorConfig, inputs: Mapping[str, Path]) -> list[_Place]:
    """Some samples, from the shortest to the longest, and every probe whose values count."""
    import numpy as np

    from pipeline.data.reference_set import PROBES_FOLDER, load_reference
    from pipeline.data.sample_set import load_samples

    samples, reference = load_samples(inputs[SAMPLES_PORT]), load_reference(inputs[REFERENCE_PORT])
    sizes = [math.prod(entry.extents.values()) for entry in samples.entries]
    order = sorted(range(len(samples)), key=lambda index: (sizes[index], index))
    short = order[: max(config.samples, sum(size <= config.longest for size in sizes))]
    spread = np.linspace(0, len(short) - 1, min(config.samples, len(short))).round().astype(int)
    chosen = [_Place(samples, reference, short[place]) for place in spread]
    if PROBES_PORT in inputs:
        probes = load_samples(inputs[PROBES_PORT])
        of_probes = load_reference(inputs[REFERENCE_PORT] / PROBES_FOLDER)
        chosen += [
            _Place(probes, of_probes, entry.index, is_probe=True)
            for entry in probes.entries
            if entry.compared == "values"
        ]
    return chosen


def _distances(
    loaded: TorchComponent,
    places: list[_Place],
    dtype: torch.dtype,
    context: StageContext,
    steps: tuple[int, int],
) -> dict[str, _Distance]:
    """Run the checkpoint in a dtype, each sample alone, and compare it with the reference.

    Args:
        loaded: The component; it is converted to the dtype.
        places: What to run.
        dtype: float32 or float64.
        context: Is told how far we are.
        steps: Runs that are behind us already, and of how many.

    Raises:
        StageError: when torch cannot run it in this dtype.
    """
    import torch

    from pipeline.errors import StageError
    from pipeline.runtimes.torch_streamed import at_hand

    found = {name: _Distance() for name in loaded.output_names}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with at_hand(loaded, dtype):
            loaded.module.to(dtype)
            for done, place in enumerate(places, start=1 + steps[0]):
                feeds = place.feeds()
                tensors = [torch.from_numpy(feeds[name]) for name in loaded.input_names]
                tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
                with torch.inference_mode():
                    values = loaded.module(*tensors)
                for name, value in zip(loaded.output_names, values, strict=True):
                    found[name].add(
                        value[0].to(torch.float64).numpy(), place.expected(name), place
                    )
                context.progress(done, steps[1], "runs")
    except (IndexError, RuntimeError, TypeError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise StageError(f"torch cannot run the checkpoint in {dtype}: {reason}") from err
    finally:
        torch.set_default_dtype(before)
    return found


NOISE_FLOOR = Stage(
    name="noise_floor",
    version=2,
    footprint=Footprint(
        base_mib=450, memory_per_weight=3.1, memory_outside=0.0, memory_per_largest=4.0
    ),
    config_type=NoiseFloorConfig,
    run=run,
    packages=("numpy", "torch", "transformers"),
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("torch", "transformers"),
)
"""Ports `checkpoint`, `samples`, `probes` and `reference` -> `noise.json`."""
