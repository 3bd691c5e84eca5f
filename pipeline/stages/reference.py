"""Compute the reference: the checkpoint in torch, on every sample alone and unpadded.

A candidate is later run on padded batches of the same samples. Whatever it does to a sample because
of its neighbours or its padding then shows as a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.data.reference_set import ReferenceIndex
    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.runtimes.torch_reference import TorchReferenceRunner
    from pipeline.stages.base import StageContext

CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"

THREADS = 1
"""One thread, so that the last bits do not depend on how many cores a machine has.

It costs little: most samples are short, and with two threads on two busy cores the 200 samples of
the quickstart took four times as long (torch 2.13, its threads wait for each other by spinning).
"""


class ReferenceConfig(StageConfig):
    """Which component of the checkpoint, loaded for which task."""

    task: str
    component: str


def run(
    config: ReferenceConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `reference.safetensors` and `reference.json`, for the probes too when there are any.

    Raises:
        StageError: when the samples lack an input that the checkpoint takes, or the checkpoint
            itself gives NaN or infinity on a sample: no candidate can be held against that.
    """
    from pipeline.data.reference_set import PROBES_FOLDER
    from pipeline.data.sample_set import load_samples
    from pipeline.runtimes.torch_reference import TorchReferenceRunner

    samples = load_samples(inputs[SAMPLES_PORT])
    probes = load_samples(inputs[PROBES_PORT]) if PROBES_PORT in inputs else None
    total, done = len(samples) + (len(probes) if probes else 0), 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.progress(done, total, "samples")

    with TorchReferenceRunner(
        inputs[CHECKPOINT_PORT],
        task=config.task,
        component=config.component,
        threads=THREADS,
        scratch=context.scratch,
        log=context.log,
    ) as runner:
        index = _write_reference(config, runner, samples, output, advance)
        if probes is not None:
            folder = output / PROBES_FOLDER
            folder.mkdir()
            _write_reference(config, runner, probes, folder, advance, may_be_non_finite=True)
    return {
        "samples": len(samples),
        "probes": len(probes) if probes else 0,
        "inputs": list(index.inputs),
        "outputs": list(index.outputs),
        "session": index.session,
    }


def _write_reference(
    config: ReferenceConfig,
    runner: TorchReferenceRunner,
    samples: SampleSet,
    output: Path,
    advance: Callable[[], None],
    *,
    may_be_non_finite: bool = False,
) -> ReferenceIndex:
    """Run one sample set and file the outputs."""
    import numpy as np

    from pipeline.data.reference_set import ReferenceIndex, save_reference
    from pipeline.data.sample_set import tensor_name
    from pipeline.errors import StageError

    tensors = {}
    names = tuple(spec.name for spec in runner.inputs)
    lacking = [name for name in names if name not in samples.input_names]
    if lacking:
        raise StageError(
            f"the checkpoint takes `{lacking[0]}`, the samples have only "
            + ", ".join(f"`{name}`" for name in samples.input_names)
        )
    for entry in samples.entries:
        (sample,) = samples.read([entry.index])
        results = runner.run({name: sample[name][np.newaxis] for name in names})
        for name, array in results.items():
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            if bad and not may_be_non_finite:
                raise StageError(
                    f"the checkpoint itself gives {bad} NaN or infinite elements in "
                    f"`{name}` for sample {entry.index}: {entry.text[:80]!r}",
                    hint="the weights are damaged, or overflow in float32",
                )
            tensors[tensor_name(name, entry.index)] = array[0].copy()
        advance()
    index = ReferenceIndex(
        task=config.task,
        component=config.component,
        inputs=names,
        outputs=tuple(spec.name for spec in runner.outputs),
        samples=len(samples),
        session=runner.session,
    )
    save_reference(index, tensors, output)
    return index


REFERENCE = Stage(
    name="reference",
    version=2,
    footprint=Footprint(
        base_mib=450,
        memory_per_weight=1.05,
        memory_outside=0.0,
        memory_per_largest=2.0,
        keeps_outputs=True,
    ),
    config_type=ReferenceConfig,
    run=run,
    packages=("numpy", "torch", "transformers"),
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("torch", "transformers"),
)
