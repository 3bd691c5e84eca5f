"""Measure how far the checkpoint in float32 is from itself: the floor under every tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"
NOISE_FILE = "noise.json"
MANY_THREADS = 2
"""Threads that one thread is compared with: enough to cut sums in another way."""


class NoiseFloorConfig(StageConfig):
    """Which component of the checkpoint, loaded for which task, on how many samples.

    Attributes:
        samples: Evaluation samples, spread over their lengths; all probes come on top.
    """

    task: str
    component: str
    samples: Annotated[int, Field(ge=1)] = 12


def run(
    config: NoiseFloorConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `noise.json`: a list of `pipeline.parity.types.NoiseFloor`, one for each output.

    Raises:
        StageError: when torch cannot run the checkpoint.
    """
    import json

    import numpy as np

    from pipeline.parity.types import NoiseFloor

    feeds = _feeds(config, inputs)
    single, many, exact = _run_thrice(config, inputs[CHECKPOINT_PORT], feeds, context)
    floors = []
    for name in single[0]:
        usable = [i for i in range(len(feeds)) if np.isfinite(exact[i][name]).all()]
        squares = sum(float(np.square(exact[i][name]).sum()) for i in usable)
        elements = sum(exact[i][name].size for i in usable)
        unit = float(np.sqrt(squares / elements)) if elements else 0.0
        floors.append(
            NoiseFloor(
                component=config.component,
                output=name,
                float64=_largest(single, exact, name, usable, unit),
                threads=_largest(many, single, name, usable, unit),
                samples=len(usable),
            )
        )
    text = json.dumps([floor.model_dump(mode="json") for floor in floors], indent=1)
    (output / NOISE_FILE).write_text(f"{text}\n", encoding="utf-8")
    return {"floors": {floor.output: floor.model_dump(mode="json") for floor in floors}}


def _feeds(config: NoiseFloorConfig, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Some samples, from the shortest to the longest, and every probe whose values count."""
    import numpy as np

    from pipeline.data.sample_set import load_samples

    samples = load_samples(inputs[SAMPLES_PORT])
    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    places = np.linspace(0, len(order) - 1, min(config.samples, len(order))).round().astype(int)
    feeds = samples.read([order[place] for place in sorted(set(places.tolist()))])
    if PROBES_PORT in inputs:
        probes = load_samples(inputs[PROBES_PORT])
        feeds += probes.read([e.index for e in probes.entries if e.compared == "values"])
    return [{name: tensor[np.newaxis] for name, tensor in feed.items()} for feed in feeds]


def _run_thrice(
    config: NoiseFloorConfig, checkpoint: Path, feeds: list[dict[str, Any]], context: StageContext
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Outputs in float64 arrays: of float32 with one thread, with several, and of float64."""
    import torch

    from pipeline.errors import StageError
    from pipeline.runtimes.torch_model import load_torch_model

    torch.set_float32_matmul_precision("highest")
    loaded = load_torch_model(checkpoint, config.task, config.component)
    total, done = 3 * len(feeds), 0

    def run_all(threads: int, dtype: torch.dtype) -> list[dict[str, Any]]:
        nonlocal done
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        loaded.module.to(dtype)
        results = []
        for feed in feeds:
            tensors = [torch.from_numpy(feed[name].copy()) for name in loaded.input_names]
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
            try:
                with torch.inference_mode():
                    values = loaded.module(*tensors)
            except (IndexError, RuntimeError) as err:
                raise StageError(f"torch cannot run the checkpoint in {dtype}: {err}") from err
            results.append(
                {
                    name: value.to(torch.float64).numpy()[0]
                    for name, value in zip(loaded.output_names, values, strict=True)
                }
            )
            done += 1
            context.progress(done, total, "runs")
        return results

    many = run_all(MANY_THREADS, torch.float32)
    single = run_all(1, torch.float32)
    exact = run_all(context.threads, torch.float64)
    return single, many, exact


def _largest(
    left: list[dict[str, Any]],
    right: list[dict[str, Any]],
    name: str,
    usable: list[int],
    unit: float,
) -> float:
    import numpy as np

    if not unit:
        return 0.0
    return max(
        float(np.sqrt(np.square(left[i][name] - right[i][name]).mean())) / unit for i in usable
    )


NOISE_FLOOR = Stage(
    name="noise_floor",
    version=1,
    footprint=Footprint(base_mib=450, memory_per_weight=2.1, keeps_outputs=False),
    config_type=NoiseFloorConfig,
    run=run,
    packages=("numpy", "torch", "transformers"),
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("torch", "transformers"),
)
"""Ports `checkpoint`, `samples` and `probes` -> `noise.json`."""
