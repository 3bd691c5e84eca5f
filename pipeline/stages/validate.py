"""Run a graph on the samples and measure how far it is from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.batching import Batch
    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.parity.types import Parity
    from pipeline.runtimes.base import Array, Runner
    from pipeline.stages.base import StageContext

PARITY_FILE = "parity.json"
MODEL_PORT = "model"
SAMPLES_PORT = "samples"
REFERENCE_PORT = "reference"
PROBES_PORT = "probes"


class ValidateConfig(StageConfig):
    """How the graph is run.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        optimizations: ONNX Runtime's graph optimisations: `disabled` runs the graph as it is
            written, `all` as a user of ONNX Runtime would.
        batch_size: Samples a run, of mixed lengths, padded on the right.
        threads: Threads inside an operator; None means all that the stage may use.
        outputs: Outputs that the graph must have; None means all that the reference has.
    """

    task: str
    optimizations: Literal["disabled", "all"]
    batch_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)] | None = None
    outputs: tuple[str, ...] | None = None


def run(
    config: ValidateConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `parity.json`. A candidate that is wrong is a result, not a failure of this stage.

    With the port `probes`, every probe is run alone and compared too.

    The facts say in `weights` what the graph's stored numbers are for, in bytes.

    Raises:
        StageError: when ONNX Runtime cannot load or run the graph, or samples and reference do
            not belong together.
    """
    from pipeline.data.batching import iter_batches
    from pipeline.data.reference_set import PROBES_FOLDER, load_reference
    from pipeline.data.sample_set import load_samples
    from pipeline.errors import StageError
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.parity.compare import ParityRecorder, check_signature
    from pipeline.parity.probes import with_probes
    from pipeline.parity.quality.catalogue import meters_of
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.tasks import find_task

    samples = load_samples(inputs[SAMPLES_PORT])
    reference = load_reference(inputs[REFERENCE_PORT])
    if reference.index.samples != len(samples):
        raise StageError(
            f"the reference is of {reference.index.samples} samples, there are {len(samples)}"
        )
    stand_in = write_stand_in(inputs[MODEL_PORT], context.scratch, config.optimizations)
    with OnnxRuntimeRunner(
        stand_in.model / MODEL_FILE,
        optimizations=config.optimizations,
        threads=config.threads or context.threads,
        spins=False,
    ) as runner:
        outputs = tuple(
            name
            for name in reference.index.outputs
            if config.outputs is None or name in config.outputs
        )
        check = check_signature(
            runner.inputs,
            runner.outputs,
            sample_inputs=samples.index.inputs,
            reference_inputs=reference.index.inputs,
            reference_outputs=outputs,
        )
        task = find_task(config.task)
        recorder = ParityRecorder(
            outputs,
            runner.outputs,
            ranked=task.ranked,
            meters=meters_of(task, outputs, samples.index.label_names),
        )
        names = [spec.name for spec in runner.inputs]
        done = 0
        for batch in iter_batches(samples, config.batch_size, names) if check.can_run else ():
            candidate = _run_batch(runner, batch, samples)
            expected = reference.read(batch.indices, recorder.outputs)
            entries = [samples.entries[index] for index in batch.indices]
            recorder.add_batch(entries, candidate, expected)
            done += len(batch.indices)
            context.progress(done, len(samples), "samples")
        parity = recorder.finish(
            check.problems,
            session=", ".join(filter(None, (runner.session, stand_in.note))),
            batch_size=config.batch_size,
            samples=len(samples),
        )
        if PROBES_PORT in inputs and check.can_run:
            probes = load_samples(inputs[PROBES_PORT])
            expectations = load_reference(inputs[REFERENCE_PORT] / PROBES_FOLDER)
            parity = with_probes(parity, runner, probes, expectations)
    (output / PARITY_FILE).write_text(f"{parity.model_dump_json(indent=1)}\n", encoding="utf-8")
    return _facts(parity) | {"weights": _weights(inputs[MODEL_PORT] / MODEL_FILE)}


def _weights(model: Path) -> list[JSON]:
    """Read after the runner is closed, so that the model is not in memory twice."""
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.weights import weights_by_operator

    return list(weights_by_operator(load_graph_only(model)))


def _run_batch(runner: Runner, batch: Batch, samples: SampleSet) -> dict[str, Array]:
    """Run one batch; when that fails, find out whether it is the batch that is the trouble."""
    from pipeline.errors import StageError

    try:
        return runner.run(batch.feeds)
    except StageError as err:
        (first,) = samples.read(batch.indices[:1])
        alone = {name: first[name][None] for name in batch.feeds}
        if len(batch.indices) == 1 or not _runs_alone(runner, alone):
            raise
        raise StageError(
            f"{err.message} - it runs on one sample alone, so a batch of 1 is built into it",
            where=err.where,
            hint="look for a Reshape or Expand with a constant shape that holds the batch axis",
        ) from err


def _runs_alone(runner: Runner, feeds: Mapping[str, Array]) -> bool:
    from pipeline.errors import StageError

    try:
        runner.run(feeds)
    except StageError:
        return False
    return True


def _facts(parity: Parity) -> dict[str, JSON]:
    return {
        "session": parity.session,
        "samples": parity.samples_seen,
        "batch_size": parity.batch_size,
        "problems": list(parity.problems),
        "outputs": {
            output.name: output.metrics.model_dump(mode="json") for output in parity.outputs
        },
        "probes": len({probe.index for probe in parity.probes}),
        "qualities": [quality.model_dump(mode="json") for quality in parity.qualities],
    }


VALIDATE = Stage(
    name="validate",
    version=5,
    footprint=Footprint(base_mib=150, memory_per_weight=2.8),
    config_type=ValidateConfig,
    run=run,
    packages=("numpy", "onnx", "onnx-ir", "onnxruntime", "scipy"),
    extra="cpu",
    # The last bits depend on the instruction set and on how a sum is cut into threads.
    machine=("cpu_flags", "cores"),
    preload=("numpy", "onnxruntime", "onnx"),
)
