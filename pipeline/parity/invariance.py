"""How far samples in company are from themselves alone: a graph is held against itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.batching import pad_batch
from pipeline.errors import PipelineError
from pipeline.parity.arrangements import MASK, Arrangement
from pipeline.parity.compare import BATCH_AXIS, cut_padding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, Tensor
    from pipeline.parity.arrangements import Case, Subject
    from pipeline.parity.metrics import Array
    from pipeline.runtimes.base import Runner


@dataclass(slots=True, kw_only=True)
class Record:
    """One output in one variant of a case.

    Attributes:
        noises: For each row that was compared, RMSE over the root mean square of the output over all
            subjects.
        samples: For each of these, which sample it was.
        problem: A sentence, when something is wrong whatever the limit is.
        rows: Of the run.
    """

    case: Case
    variant: str
    output: str
    noises: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    problem: str = ""
    rows: int = 1


class InvarianceRecorder:
    """Runs subjects alone and then in company, and keeps how far they are from themselves.

    Args:
        runner: The graph, loaded.
        inputs: What the graph takes, as the samples have it.
        subjects: As `arrange` gives them.
        is_masked_finite: The checkpoint gives finite numbers for a text that is masked altogether,
            so that a row of padding must be finite here too.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Mapping[str, InputSpec],
        subjects: Sequence[Subject],
        *,
        is_masked_finite: bool,
    ) -> None:
        self._runner = runner
        self._inputs = inputs
        self._subjects = subjects
        self._is_masked_finite = is_masked_finite
        self._alone: dict[int, dict[str, Array]] = {}
        self._units: dict[str, float] = {}
        self._records: dict[tuple[Case, str, str], Record] = {}

    @property
    def records(self) -> tuple[Record, ...]:
        """What was found so far, in the order in which it was."""
        return tuple(self._records.values())

    def run_alone(self, advance: Callable[[], None]) -> None:
        """Run every subject alone, and samples again; `advance` is called after each subject."""
        for place in range(len(self._subjects)):
            run = Arrangement(case="alone", variant="alone", rows=(place,))
            first = self._run(run)
            if first is not None:
                self._alone[place] = {
                    name: self._cut(name, array[0], place) for name, array in first.items()
                }
                if not self._subjects[place].is_made:
                    self._repeat(first, run)
            advance()
        for spec in self._runner.outputs:
            arrays = [arrays[spec.name].astype(np.float64) for arrays in self._alone.values()]
            squares = sum(float(np.square(array).sum()) for array in arrays)
            elements = sum(array.size for array in arrays)
            self._units[spec.name] = math.sqrt(squares / elements) if elements else 0.0

    def add(self, run: Arrangement) -> None:
        """Run an arrangement and compare each row with its subject alone."""
        if any(place is not None and place not in self._alone for place in run.rows):
            return  # that it does not run alone is said already
        results = self._run(run)
        for name, array in (results or {}).items():
            record = self._record(run, name)
            if not array.ndim or array.shape[BATCH_AXIS] != len(run.rows):
                _note(record, f"it gives {list(array.shape)} for a batch of {len(run.rows)}")
                continue
            for row, place in enumerate(run.rows):
                if place is None:
                    self._look_at_masked(record, array[row])
                else:
                    self._compare(record, place, row, self._cut(name, array[row], place))

    def _run(self, run: Arrangement) -> dict[str, Array] | None:
        """All outputs; None when the graph refuses, which is noted."""
        feeds = pad_batch(self._rows(run), self._inputs)
        try:
            return self._runner.run(feeds)
        except PipelineError as error:
            shape = ", ".join(f"`{name}` {list(array.shape)}" for name, array in feeds.items())
            why = "" if shape in error.message else f" on {shape}"
            for spec in self._runner.outputs:
                _note(
                    self._record(run, spec.name),
                    f"it cannot be run{why}: {error.message}{_built_in(run)}",
                )
            return None

    def _rows(self, run: Arrangement) -> list[dict[str, Tensor]]:
        rows = []
        for place in run.rows:
            subject = self._subjects[0 if place is None else place]
            tensors = {name: subject.tensors[name] for name in self._inputs}
            if place is None:
                tensors[MASK] = np.zeros_like(tensors[MASK])
            rows.append(tensors)
        for name, spec in self._inputs.items():
            tensor = rows[0][name]
            wider = [
                (0, max(0, run.sizes.get(axis or "", 0) - size))
                for axis, size in zip(spec.axes, tensor.shape, strict=True)
            ]
            rows[0][name] = np.pad(tensor, wider, constant_values=spec.fill)
        return rows

    def _cut(self, name: str, row: Array, place: int) -> Array:
        declared = next(spec for spec in self._runner.outputs if spec.name == name)
        return cut_padding(declared, row, self._subjects[place].extents, {})

    def _record(self, run: Arrangement, output: str) -> Record:
        key = (run.case, run.variant, output)
        return self._records.setdefault(
            key, Record(case=run.case, variant=run.variant, output=output, rows=len(run.rows))
        )

    def _repeat(self, first: Mapping[str, Array], alone: Arrangement) -> None:
        again = self._run(alone)
        run = Arrangement(case="repeated", variant="in one session", rows=alone.rows)
        sample = self._subjects[alone.rows[0] or 0].index
        if again is None:
            return
        for name, array in first.items():
            record = self._record(run, name)
            record.samples.append(sample)
            record.noises.append(_noise(again[name], array, 0.0))
            if array.tobytes() != again[name].tobytes():
                _note(record, f"sample {sample} comes out differently when it is run again")

    def _compare(self, record: Record, place: int, row: int, candidate: Array) -> None:
        expected = self._alone[place][record.output]
        sample = self._subjects[place].index
        who = f"sample {sample} in row {row + 1} of {record.rows}"
        if candidate.shape != expected.shape:
            _note(
                record,
                f"{who} has shape {list(candidate.shape)}, alone it has {list(expected.shape)}",
            )
        elif not np.isfinite(candidate).all():
            _note(record, f"{who} has elements that are NaN or infinite")
        elif not np.isfinite(expected).all():
            _note(
                record, f"sample {sample} has elements that are NaN or infinite when it is alone"
            )
        else:
            record.samples.append(sample)
            record.noises.append(_noise(candidate, expected, self._units[record.output]))

    def _look_at_masked(self, record: Record, row: Array) -> None:
        if self._is_masked_finite and not np.isfinite(row).all():
            _note(
                record,
                "a row that is masked altogether has elements that are NaN or infinite, where the "
                "checkpoint has none",
            )


def _note(record: Record, sentence: str) -> None:
    """Keep the first sentence: what follows is of the same kind."""
    record.problem = record.problem or sentence


def _noise(candidate: Array, expected: Array, unit: float) -> float:
    """RMSE over `unit`; over the size of what is expected when no unit is known."""
    exact = expected.astype(np.float64)
    error = (
        math.sqrt(np.square(candidate.astype(np.float64) - exact).mean()) if exact.size else 0.0
    )
    unit = unit or math.sqrt(np.square(exact).mean() if exact.size else 0.0)
    return error / unit if unit else error


def _built_in(run: Arrangement) -> str:
    """What is to blame when samples that run alone do not run so."""
    if run.case == "alone":
        return ""
    if len(run.rows) > 1:
        return " - each sample runs alone, so a batch of 1 is built into it"
    return " - the sample runs unpadded, so a length is built into it"
