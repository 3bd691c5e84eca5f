"""Run a graph on the probes and compare each with the checkpoint's own outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import MASK, is_prefix
from pipeline.errors import StageError
from pipeline.parity.compare import array_fault, cut_padding, vectors_last
from pipeline.parity.metrics import sum_distances
from pipeline.parity.types import ProbeMetrics
from pipeline.runtimes.base import FeedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pipeline.data.reference_set import ReferenceSet
    from pipeline.data.sample_set import SampleEntry, SampleSet
    from pipeline.parity.metrics import Array
    from pipeline.parity.types import Parity
    from pipeline.runtimes.base import ModelTensor, Runner


def with_probes(
    parity: Parity,
    runner: Runner,
    probes: SampleSet,
    reference: ReferenceSet,
    *,
    outputs: Collection[str] | None = None,
    counts_mask: bool = False,
) -> Parity:
    """The comparison with each probe in it, and what was wrong with them among its problems.

    Args:
        parity: The comparison on the samples.
        runner: The graph, loaded.
        probes: What to run, each alone.
        reference: What the checkpoint made of them.
        outputs: Those that are compared; None: all that the graph and the checkpoint have.
        counts_mask: The graph only counts what its mask lets through, so that probes with padding in
            front, with holes, or with nothing at all say nothing of it: they are left out.
    """
    declared = {spec.name: spec for spec in runner.outputs}
    names = [
        name
        for name in reference.index.outputs
        if name in declared and (outputs is None or name in outputs)
    ]
    found: list[ProbeMetrics] = []
    problems: list[str] = []
    for entry in probes.entries:
        (sample,) = probes.read([entry.index])
        if counts_mask and not is_prefix(sample[MASK]):
            continue
        try:
            results = runner.run({spec.name: sample[spec.name][None] for spec in runner.inputs})
        except (StageError, FeedError) as error:
            problems.append(f"probe {entry.index} ({entry.text}) cannot be run: {error.message}")
            continue
        expected = {
            name: arrays[0] for name, arrays in reference.read([entry.index], names).items()
        }
        for metrics, problem in _compare(entry, results, expected, declared):
            found.append(metrics)
            problems += [problem] if problem else []
    return parity.model_copy(
        update={"probes": tuple(found), "problems": (*parity.problems, *problems)}
    )


def _compare(
    entry: SampleEntry,
    results: Mapping[str, Array],
    expected: Mapping[str, Array],
    declared: Mapping[str, ModelTensor],
) -> Iterator[tuple[ProbeMetrics, str]]:
    for name, whole in expected.items():
        # The reference was fed the padding too; only a candidate's neighbours are not in it.
        metrics, problem = None, ""
        of = f"output `{name}` on probe {entry.index} ({entry.text})"
        fault = array_fault(results[name], 1)
        candidate, reference = (
            cut_padding(declared[name], array, entry.extents, entry.starts)
            for array in (whole if fault else results[name][0], whole)
        )
        if fault:
            problem = f"{of} {fault}"
        elif candidate.shape != reference.shape:
            problem = (
                f"{of} has shape {list(candidate.shape)}, the checkpoint's has "
                f"{list(reference.shape)}"
            )
        elif not np.isfinite(reference).all():
            pass  # the checkpoint makes no number of it either
        else:
            sums = sum_distances(
                vectors_last(candidate, declared[name]), vectors_last(reference, declared[name])
            )
            if sums.non_finite:
                problem = f"{of} has {sums.non_finite} elements that are NaN or infinite"
            if entry.compared == "values" or sums.non_finite:
                metrics = sums.metrics()
        yield (
            ProbeMetrics(
                index=entry.index,
                kind=entry.kind,
                text=entry.text,
                output=name,
                metrics=metrics,
            ),
            problem,
        )
