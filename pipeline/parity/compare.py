"""Compare what a graph declares, and what it computes, with the reference.

Differences in numbers become metrics, which the recipe's gates judge. Differences in kind (names,
shapes, dtypes, NaN) become `problems`: sentences that fail a candidate whatever the limits are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import is_cache, is_present
from pipeline.parity.metrics import DistanceSums, sum_distances
from pipeline.parity.types import OutputParity, Parity, SampleMetrics
from pipeline.tasks import SEQUENCE_AXIS, TOTAL_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, SampleEntry
    from pipeline.parity.metrics import Array
    from pipeline.parity.quality.meters import Meter
    from pipeline.runtimes.base import ModelTensor

BATCH_AXIS = 0
FEATURE_MAP_AXES = 3
"""Of one sample's output that is a map; texts and patches have two axes at most."""
OUTPUT_DTYPES = ("float16", "float32")
"""Element types in which an output may come; the comparison itself is in float64."""


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """What a graph declares, held against what the reference was fed and gave.

    Attributes:
        problems: What is wrong, one sentence each.
        can_run: The samples can be fed; when not, there will be no numbers.
    """

    problems: tuple[str, ...]
    can_run: bool


def check_signature(
    inputs: Sequence[ModelTensor],
    outputs: Sequence[ModelTensor],
    *,
    sample_inputs: Mapping[str, InputSpec],
    reference_inputs: Iterable[str],
    reference_outputs: Iterable[str],
) -> SignatureCheck:
    """Names, dtypes and free axes of a graph, before anything is run.

    Args:
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        sample_inputs: Inputs that the samples can feed, as all samples have them.
        reference_inputs: Inputs that the reference was fed: each one must reach the candidate too.
        reference_outputs: Outputs that the candidate must have. Without keys and values among them, it
            need not take any either.
    """
    wanted = tuple(reference_outputs)
    keeps_cache = any(map(is_present, wanted))
    blocking = [
        f"input `{spec.name}` is unknown: the samples have {_listing(sample_inputs)}"
        for spec in inputs
        if spec.name not in sample_inputs
    ]
    for spec in inputs:
        if spec.name in sample_inputs:
            blocking += _input_faults(spec, sample_inputs[spec.name])
    present = {spec.name for spec in inputs}
    missing = [
        f"input `{name}` is missing: the checkpoint takes it, the graph takes {_listing(present)}"
        for name in reference_inputs
        if name not in present and (keeps_cache or not is_cache(name))
    ]
    declared = {spec.name for spec in outputs}
    missing += [
        f"output `{name}` is missing: the graph has {_listing(declared)}"
        for name in wanted
        if name not in declared
    ]
    return SignatureCheck(tuple(blocking + missing), can_run=not blocking)


def _input_faults(spec: ModelTensor, sample: InputSpec) -> list[str]:
    faults = []
    if spec.dtype != sample.dtype:
        faults.append(f"input `{spec.name}` is {spec.dtype}, the samples are {sample.dtype}")
    if spec.shape is None:
        return faults
    wanted = ", ".join(("batch", *(axis or "of one size" for axis in sample.axes)))
    if len(spec.shape) != 1 + len(sample.axes):
        return [*faults, f"input `{spec.name}` is {spec}, it must be [{wanted}]"]
    free = ("batch", *sample.axes)
    if any(axis and isinstance(size, int) for axis, size in zip(free, spec.shape, strict=True)):
        names = " and ".join(axis for axis in free if axis)
        faults.append(f"input `{spec.name}` is {spec}, {names} must be free, not of one size")
    return faults


def _listing(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


@dataclass(slots=True)
class _Trouble:
    """One kind of trouble with one output: how it showed first, and in how many samples."""

    first: str
    index: int
    samples: int = 1
    elements: int = 0


@dataclass(slots=True)
class _OutputRecord:
    """What is known so far of one output."""

    is_ranked: bool = False
    total: DistanceSums = field(default_factory=DistanceSums)
    samples: list[SampleMetrics] = field(default_factory=list)
    troubles: dict[str, _Trouble] = field(default_factory=dict)

    def add(self, index: int, sums: DistanceSums) -> None:
        self.total += sums
        self.samples.append(SampleMetrics(index=index, metrics=sums.metrics()))

    def note(self, kind: str, sentence: str, index: int, elements: int = 0) -> None:
        known = self.troubles.get(kind)
        if known is None:
            self.troubles[kind] = _Trouble(sentence, index, elements=elements)
        else:
            known.samples += 1
            known.elements += elements


class ParityRecorder:
    """Collects the comparison of one graph, batch by batch; keeps numbers only, no tensors.

    Args:
        outputs: Every output of the reference.
        declared: What the graph declares of its outputs, which says where their named axes are.
        ranked: Outputs of which the place of the largest element counts.
        meters: Figures of the task, which are given every sample that could be compared; the first
            one is the task's own where samples are labelled.
    """

    def __init__(
        self,
        outputs: Sequence[str],
        declared: Sequence[ModelTensor],
        *,
        ranked: Sequence[str] = (),
        meters: Sequence[Meter] = (),
    ) -> None:
        self._records = {name: _OutputRecord(is_ranked=name in ranked) for name in outputs}
        self._meters = tuple(meters)
        self._declared = {spec.name: spec for spec in declared}
        self._seen = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that are compared: those of the reference that the graph has."""
        return tuple(name for name in self._records if name in self._declared)

    def add_batch(
        self,
        entries: Sequence[SampleEntry],
        candidate: Mapping[str, Array],
        reference: Mapping[str, Sequence[Array]],
    ) -> None:
        """Compare one batch, valid positions only.

        Args:
            entries: The sample of each row.
            candidate: Output name -> (batch, ...), padded along its named axes.
            reference: Output name -> for each row the sample's own output, without batch axis and
                without padding.
        """
        self._seen += len(entries)
        rows: list[dict[str, Array]] = [{} for _ in entries]
        for name in self.outputs:
            record = self._records[name]
            array = candidate[name]
            fault = array_fault(array, len(entries))
            for place, entry in enumerate(entries):
                if fault:
                    record.note("array", fault, entry.index)
                    record.add(entry.index, DistanceSums())
                    continue
                row = cut_padding(self._declared[name], array[place], entry.extents, entry.starts)
                if self._add_row(name, entry.index, row, reference[name][place]):
                    rows[place][name] = row
        for place, entry in enumerate(entries):
            # A sample with an output that could not be compared has no answer to be counted.
            if self._meters and len(rows[place]) == len(self._records):
                expected = {name: reference[name][place] for name in self._records}
                for meter in self._meters:
                    meter.add(entry.label, rows[place], expected)

    def _add_row(self, name: str, index: int, candidate: Array, reference: Array) -> bool:
        """Compare one sample's output; False when there is nothing that could be compared."""
        record = self._records[name]
        if candidate.shape != reference.shape:
            axes = self._declared[name]
            record.note(
                "shape",
                f"has shape {list(candidate.shape)} where the reference has "
                f"{list(reference.shape)} (batch axis left out; the graph declares {axes})",
                index,
            )
            record.add(index, DistanceSums())
            return False
        declared = self._declared[name]
        sums = sum_distances(
            vectors_last(candidate, declared),
            vectors_last(reference, declared),
            is_ranked=record.is_ranked,
        )
        if sums.non_finite:
            record.note("finite", "", index, sums.non_finite)
        record.add(index, sums)
        return not sums.non_finite

    def finish(
        self, problems: Sequence[str], *, session: str, batch_size: int, samples: int
    ) -> Parity:
        """The record of the whole comparison.

        Args:
            problems: What was wrong before anything was run.
            session: How the graph was run.
            batch_size: Samples a run.
            samples: How many samples there are, for the sentences.
        """
        found = list(problems)
        for name, record in self._records.items():
            found += [
                _sentence(name, kind, trouble, samples)
                for kind, trouble in record.troubles.items()
            ]
        return Parity(
            outputs=tuple(
                OutputParity(
                    name=name,
                    is_ranked=record.is_ranked,
                    metrics=record.total.metrics(),
                    samples=tuple(sorted(record.samples, key=lambda sample: sample.index)),
                )
                for name, record in self._records.items()
            ),
            problems=tuple(found),
            session=session,
            batch_size=batch_size,
            samples_seen=self._seen,
            qualities=tuple(
                quality for meter in self._meters if (quality := meter.result()) is not None
            ),
        )


def array_fault(array: Array, rows: int) -> str:
    """What is wrong with an output as a whole, of a batch of `rows`; empty when nothing is."""
    if array.dtype.name not in OUTPUT_DTYPES:
        return f"is {array.dtype.name}, it must be {' or '.join(OUTPUT_DTYPES)}"
    if not array.ndim or array.shape[BATCH_AXIS] != rows:
        return f"has shape {list(array.shape)} for a batch of {rows}"
    return ""


def cut_padding(
    declared: ModelTensor,
    sample: Array,
    extents: Mapping[str, int],
    starts: Mapping[str, int],
) -> Array:
    """One sample's output without its padding; the axes are found by the names the graph gives them.

    Args:
        declared: The output as the graph declares it, with its batch axis.
        sample: The output without its batch axis.
        extents: Named axis -> where padding begins.
        starts: Named axis -> where padding before the sample ends; 0 when left out.
    """
    for axis, size in extents.items():
        place = declared.axis(axis)
        if place is None and axis == SEQUENCE_AXIS and TOTAL_AXIS not in extents:
            place = declared.axis(TOTAL_AXIS)  # it has no past
        if place is not None and BATCH_AXIS < place <= sample.ndim:
            # Slicing past the end gives what is there, and the shapes are then found to differ.
            valid = slice(starts.get(axis, 0), size)
            sample = sample[(slice(None),) * (place - 1) + (valid,)]
    return sample


def vectors_last(sample: Array, declared: ModelTensor | None = None) -> Array:
    """A sample's output with its vectors along the last axis.

    Feature maps are (channels, height, width) throughout transformers: what describes a place lies
    along the first axis, and a row of pixels of one channel is no vector of anything. Keys and
    values, (heads, tokens, head size), have three axes too, and have their vectors last already.
    """
    if declared is not None and is_present(declared.name):
        return sample
    return np.moveaxis(sample, 0, -1) if sample.ndim == FEATURE_MAP_AXES else sample


def _sentence(name: str, kind: str, trouble: _Trouble, samples: int) -> str:
    where = f"in {trouble.samples} of {samples} samples, first in sample {trouble.index}"
    if kind == "finite":
        return f"output `{name}` has {trouble.elements} elements that are NaN or infinite, {where}"
    return f"output `{name}` {trouble.first}, {where}"
