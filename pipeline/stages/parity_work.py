"""What every stage that compares a model with the reference does, whatever runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.data.batching import iter_batches
from pipeline.data.reference_set import PROBES_FOLDER, load_reference
from pipeline.data.sample_set import load_samples
from pipeline.errors import StageError
from pipeline.parity.compare import ParityRecorder, check_signature
from pipeline.parity.probes import with_probes
from pipeline.parity.quality.catalogue import meters_of
from pipeline.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.batching import Batch
    from pipeline.data.reference_set import ReferenceSet
    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.parity.types import Parity
    from pipeline.runtimes.base import Array, Runner
    from pipeline.stages.base import StageContext


@dataclass(frozen=True, slots=True)
class Pair:
    """Samples, and what the checkpoint made of them.

    Attributes:
        folder: Of the reference; its probes lie in it.
    """

    samples: SampleSet
    reference: ReferenceSet
    folder: Path


class Comparison(Protocol):
    """What the config of a stage that compares says of it."""

    @property
    def task(self) -> str:
        """Says which outputs are ranked, and what a label means."""

    @property
    def batch_size(self) -> int:
        """Samples a run, of mixed lengths, padded on the right."""

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Outputs that the model must have; None means all that the reference has."""


def load_pair(samples: Path, reference: Path) -> Pair:
    """Open both.

    Raises:
        StageError: they do not belong together.
    """
    pair = Pair(load_samples(samples), load_reference(reference), reference)
    if pair.reference.index.samples != len(pair.samples):
        raise StageError(
            f"the reference is of {pair.reference.index.samples} samples, there are "
            f"{len(pair.samples)}"
        )
    return pair


def compare(
    runner: Runner,
    pair: Pair,
    how: Comparison,
    *,
    probes: Path | None,
    session: str,
    context: StageContext,
    counts_mask: bool = False,
) -> Parity:
    """Run a loaded model on all samples, and on each probe alone.

    Args:
        runner: The model.
        pair: What it is fed, and what it is held against.
        how: The config of the stage.
        probes: Directory of the probes, or None.
        session: What ran it, for the report.
        context: Progress counts samples.
        counts_mask: As in `with_probes`.

    Raises:
        StageError: the model cannot be run.
    """
    samples, reference = pair.samples, pair.reference
    wanted = how.outputs
    outputs = tuple(name for name in reference.index.outputs if wanted is None or name in wanted)
    check = check_signature(
        runner.inputs,
        runner.outputs,
        sample_inputs=samples.index.inputs,
        reference_inputs=reference.index.inputs,
        reference_outputs=outputs,
    )
    task = find_task(how.task)
    recorder = ParityRecorder(
        outputs,
        runner.outputs,
        ranked=task.ranked,
        meters=meters_of(task, outputs, samples.index.label_names),
    )
    names = [spec.name for spec in runner.inputs]
    done = 0
    for batch in iter_batches(samples, how.batch_size, names) if check.can_run else ():
        candidate = _run_batch(runner, batch, samples)
        expected = reference.read(batch.indices, recorder.outputs)
        entries = [samples.entries[index] for index in batch.indices]
        recorder.add_batch(entries, candidate, expected)
        done += len(batch.indices)
        context.progress(done, len(samples), "samples")
    parity = recorder.finish(
        check.problems, session=session, batch_size=how.batch_size, samples=len(samples)
    )
    if probes is not None and check.can_run:
        expectations = load_reference(pair.folder / PROBES_FOLDER)
        parity = with_probes(
            parity,
            runner,
            load_samples(probes),
            expectations,
            outputs=wanted,
            counts_mask=counts_mask,
        )
    return parity


def _run_batch(runner: Runner, batch: Batch, samples: SampleSet) -> dict[str, Array]:
    """Run one batch; when that fails, find out whether it is the batch that is the trouble."""
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
    try:
        runner.run(feeds)
    except StageError:
        return False
    return True


def parity_facts(parity: Parity) -> dict[str, JSON]:
    """What a comparison says of itself in the facts of its stage."""
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
