"""Run samples of a graph alone, in batches, with more padding and again, and compare it with itself.

A graph that cannot be run so is a result, not a failure of this stage.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.parity.arrangements import Subject
    from pipeline.parity.invariance import Record
    from pipeline.runtimes.base import Runner
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"
REFERENCE_PORT = "reference"
ALL_MASKED = "all_masked"


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
    """Facts: for each output, case and variant the noise of each row, and which sample it was.

    Besides, nodes that draw random numbers, nodes that take scales from what is fed, and the least
    exact type of the graph's floating-point weights.

    Raises:
        StageError: when ONNX Runtime cannot load the graph.
    """
    from pipeline.data.sample_set import load_samples
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.run_time_effects import (
        least_float,
        nodes_with_scales_at_run_time,
        random_nodes,
    )
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.parity.arrangements import arrange
    from pipeline.parity.invariance import InvarianceRecorder
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    del output
    samples = load_samples(inputs[SAMPLES_PORT])
    path = inputs[MODEL_PORT] / MODEL_FILE
    records: tuple[Record, ...] = ()
    chosen: list[Subject] = []
    stand_in = write_stand_in(inputs[MODEL_PORT], context.scratch, config.optimizations)
    with OnnxRuntimeRunner(
        stand_in.model / MODEL_FILE, optimizations=config.optimizations, threads=context.threads
    ) as runner:
        unknown = _unknown_inputs(runner, samples)
        if not unknown:
            chosen = _subjects(samples, config)
            specs = {spec.name: samples.index.inputs[spec.name] for spec in runner.inputs}
            subjects, runs = arrange(chosen, specs, config.extents)
            recorder = InvarianceRecorder(
                runner, specs, subjects, is_masked_finite=_is_masked_finite(inputs)
            )
            done, total = 0, len(subjects) + len(runs)

            def advance() -> None:
                nonlocal done
                done += 1
                context.progress(done, total, "runs")

            recorder.run_alone(advance)
            for arrangement in runs:
                recorder.add(arrangement)
                advance()
            records = recorder.records
    graph = load_graph_only(path)
    return {
        "samples": sorted(subject.index for subject in chosen),
        "problems": unknown,
        "random_nodes": list(random_nodes(graph)),
        "scales_at_run_time": list(nodes_with_scales_at_run_time(graph)),
        "least_float": least_float(graph),
        "cases": [_fact(record) for record in records],
    }


def _subjects(samples: SampleSet, config: InvarianceConfig) -> list[Subject]:
    """Some samples, from the smallest to the largest, of usual sizes as far as there are such."""
    import numpy as np

    from pipeline.parity.arrangements import Subject

    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    usual = [
        i
        for i in order
        if all(
            size <= config.extents.get(axis, (0, size, 0))[1]
            for axis, size in samples.entries[i].extents.items()
        )
    ]
    order = usual if len(usual) > 1 else order
    places = np.linspace(0, len(order) - 1, min(config.samples, len(order))).round().astype(int)
    chosen = [order[place] for place in sorted(set(places.tolist()))]
    return [
        Subject(index=index, tensors=tensors, extents=samples.entries[index].extents)
        for index, tensors in zip(chosen, samples.read(chosen), strict=True)
    ]


def _unknown_inputs(runner: Runner, samples: SampleSet) -> list[JSON]:
    return [
        f"input `{spec.name}` is unknown, so nothing can be run: the samples have "
        + ", ".join(f"`{name}`" for name in samples.input_names)
        for spec in runner.inputs
        if spec.name not in samples.input_names
    ]


def _is_masked_finite(inputs: Mapping[str, Path]) -> bool:
    """Whether the checkpoint itself makes numbers of a text that is masked altogether, as far as known."""
    import numpy as np

    from pipeline.data.reference_set import PROBES_FOLDER, load_reference
    from pipeline.data.sample_set import load_samples

    if PROBES_PORT not in inputs:
        return False
    entries = load_samples(inputs[PROBES_PORT]).entries
    indices = [entry.index for entry in entries if entry.kind == ALL_MASKED]
    reference = load_reference(inputs[REFERENCE_PORT] / PROBES_FOLDER)
    outputs = reference.read(indices, reference.index.outputs)
    return bool(indices) and all(
        np.isfinite(array).all() for arrays in outputs.values() for array in arrays
    )


def _fact(record: Record) -> dict[str, JSON]:
    return {
        "case": record.case,
        "variant": record.variant,
        "output": record.output,
        "noises": [noise if math.isfinite(noise) else None for noise in record.noises],
        "samples": list(record.samples),
        "problem": record.problem,
    }


INVARIANCE = Stage(
    name="invariance",
    version=2,
    footprint=Footprint(base_mib=150, memory_per_weight=2.8),
    config_type=InvarianceConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    machine=("cpu_flags", "cores"),
    preload=("numpy", "onnxruntime"),
)
"""Ports `model`, `samples`, `probes` and `reference` -> facts only."""
