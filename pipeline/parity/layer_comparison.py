"""Runs a graph and what it was made from, and compares their inner values layer by layer.

One sample at a time, so that nothing is padded. The graph runs twice: as a whole, which shows what
has come together at each value, and in pieces that start from the right values, which shows what
each piece adds of its own (`pipeline.parity.layer_noise`). Both are made of the same file, with
the same optimisations of ONNX Runtime.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

import numpy as np

from pipeline.errors import StageError
from pipeline.graph.files import load_graph_only, load_model
from pipeline.graph.inner_values import captured_names
from pipeline.graph.observed import write_observed_model
from pipeline.graph.segments import FED, read_by, write_segment
from pipeline.parity.layer_noise import LayerRow
from pipeline.runtimes.static_cache import CacheRunner
from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.graph.inner_values import InnerValue
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.onnxruntime import Optimizations

GROUP_BYTES: Final = 192 << 20
"""About this much of right values is in memory at a time, as float32; what the graph itself makes of
them comes on top, twice."""

_ELEMENT_TYPES: Final = {"float32": 1, "float16": 10, "float64": 11}
"""numpy's name -> `onnx.TensorProto.DataType`, of the types that are compared."""

_FLOAT16_MAX: Final = 65504.0

_WORSE: Final = 4.0
"""How many times worse a result must be with right values to say that they are not what it reads."""


class RightValues(Protocol):
    """Where right values come from."""

    @property
    def names(self) -> frozenset[str]:
        """All values that there are."""

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str]
    ) -> Mapping[str, Sequence[Array]]:
        """For each name the arrays that may be meant; those that were not made are left out."""


class GraphValues:
    """Inner values of another graph.

    Args:
        runner: Loaded, returning them.
    """

    def __init__(self, runner: CacheRunner) -> None:
        self._runner = runner
        self._inputs = [spec.name for spec in runner.inputs]

    @property
    def names(self) -> frozenset[str]:
        """Those that are floats."""
        return frozenset(
            spec.name for spec in self._runner.outputs if spec.dtype in _ELEMENT_TYPES
        )

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str]
    ) -> Mapping[str, Sequence[Array]]:
        """One array for each name."""
        mine = {name: feeds[name] for name in self._inputs}
        return {name: (array,) for name, array in self._runner.run(mine, names).items()}


@dataclass(slots=True, kw_only=True)
class LayerComparison:
    """What was found.

    Attributes:
        rows: In the order of the graph.
        unmatched: Values of the graph that nothing can be compared with.
        samples: How many samples were run.
        problems: What could not be measured, and why.
    """

    rows: list[LayerRow]
    unmatched: int
    samples: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """How to compare.

    Attributes:
        optimizations: Of ONNX Runtime, for the graph that is looked at.
        threads: Of a run.
        scratch: An empty directory for copies of the graph.
        time_limit_s: No sample is begun later than this; the first always is.
        limit: Largest noise that nodes may add.
    """

    optimizations: Optimizations
    threads: int
    scratch: Path
    time_limit_s: float
    limit: float


def compare_layers(
    model: Path,
    values: Sequence[InnerValue],
    right: RightValues,
    samples: Sequence[Mapping[str, Array]],
    options: ComparisonOptions,
    progress: Callable[[int, int], None],
) -> LayerComparison:
    """Compare the inner values of a graph with right ones of the same names.

    Args:
        model: The graph's directory.
        values: Its inner values.
        right: What they should be.
        samples: Feeds of one sample each, with the batch axis; the smallest first.
        options: How to compare.
        progress: Told how many samples are done, and of how many.

    Raises:
        ArtifactError: when the file is no model.
        StageError: when ONNX Runtime cannot load or run the graph as a whole.
    """
    started = time.monotonic()
    graph = load_graph_only(model / MODEL_FILE).graph
    outputs = {value.name for value in graph.output}
    mine = [value for value in values if value.is_computed or value.name in outputs]
    known = [value for value in mine if value.name in right.names]
    whole = _folder(options.scratch, "whole")
    inner = [value.name for value in known if value.name not in outputs]
    path = write_observed_model(model, inner, whole, is_float32=False)
    order = list(_spread(len(samples)))
    with _runner(path, options) as runner:
        dtypes = {spec.name: spec.dtype for spec in runner.outputs}
        known = [value for value in known if dtypes[value.name] in _ELEMENT_TYPES]
        sizes = _sizes(runner, right, known, samples)
        known = [value for value in known if value.name in sizes]
        captured = captured_names(graph)
        while True:
            rows = [
                LayerRow(value=v.name, operator=v.operator, node=v.node, layer=v.layer)
                for v in known
            ]
            given = {
                v.name: _ELEMENT_TYPES[dtypes[v.name]] for v in known if v.name not in captured
            }
            work = _Work(
                runner=runner,
                right=right,
                dtypes=dtypes,
                result=LayerComparison(rows=rows, unmatched=len(mine) - len(rows)),
            )
            with ExitStack() as stack:
                pieces = [
                    stack.enter_context(piece)
                    for piece in _pieces(model, rows, given, sizes, options, runner)
                ]
                work.add(pieces, samples[order[0]])
                misnamed = _misnamed(rows, read_by(graph, list(sizes), given), options.limit)
                if not misnamed:
                    progress(work.result.samples, len(samples))
                    for number in order[1:]:
                        if time.monotonic() - started > options.time_limit_s:
                            break
                        work.add(pieces, samples[number])
                        progress(work.result.samples, len(samples))
                    return work.result
            known = [value for value in known if value.name not in misnamed]
            sizes = {value.name: sizes[value.name] for value in known}


def _misnamed(
    rows: Sequence[LayerRow], sources: Mapping[str, Sequence[str]], limit: float
) -> set[str]:
    """Values that only share their names with the right ones.

    A normalisation that is folded into the weights before it leaves them with other results, and
    what comes behind is right all the same. So where right values make a result worse that the
    graph's own values make well, those of them that depart do not belong there.
    """
    totals = {row.value: row.total.noise for row in rows}
    found: set[str] = set()
    for row in rows:
        noise, own = row.total.noise, row.own.noise
        if noise is None or not row.own.count:
            continue
        if own is None or own > max(limit, _WORSE * noise):
            found |= {
                name
                for name in sources[row.value]
                if (each := totals[name]) is None or each > limit
            }
    return found


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def _runner(path: Path, options: ComparisonOptions) -> CacheRunner:
    return CacheRunner(path, optimizations=options.optimizations, threads=options.threads)


def _spread(count: int) -> Iterator[int]:
    """Each number below `count` once: the first, the last, then those between."""
    yield from (0, count - 1) if count > 1 else range(count)
    yield from range(1, count - 1)


def _sizes(
    runner: CacheRunner,
    right: RightValues,
    known: Sequence[InnerValue],
    samples: Sequence[Mapping[str, Array]],
) -> dict[str, int]:
    """Bytes of each value at the largest sample, about; values of different shapes are left out."""
    first = samples[0]
    inputs = [spec.name for spec in runner.inputs]
    names = [value.name for value in known]
    mine = runner.run({name: first[name] for name in inputs}, names)
    theirs = right.run(first, names)
    grown: dict[int, int] = {}
    for name in inputs:
        for axis, size in enumerate(first[name].shape):
            largest = max(sample[name].shape[axis] for sample in samples)
            if largest > size:
                grown[size] = max(largest, grown.get(size, 0))
    sizes = {}
    for name in names:
        shape = mine[name].shape
        if any(array.shape == shape for array in theirs.get(name, ())):
            sizes[name] = 4 * math.prod(grown.get(int(size), int(size)) for size in shape)
    return sizes


class _Piece:
    """Some values, and the part of the graph that computes them out of right ones."""

    def __init__(
        self, rows: list[LayerRow], path: Path, taken: tuple[str, ...], runner: CacheRunner
    ) -> None:
        self.rows = rows
        self.taken = taken
        self.path = path
        self.runner = runner

    def __enter__(self) -> Self:
        self.runner.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.__exit__(None, None, None)


def _pieces(
    model: Path,
    rows: Sequence[LayerRow],
    given: Mapping[str, int],
    sizes: Mapping[str, int],
    options: ComparisonOptions,
    whole: CacheRunner,
) -> Iterator[_Piece]:
    groups: list[list[LayerRow]] = []
    room = 0
    for row in rows:
        room -= sizes[row.value]
        if not groups or room < 0:
            groups.append([])
            room = GROUP_BYTES - sizes[row.value]
        groups[-1].append(row)
    loaded = load_model(model / MODEL_FILE)
    for group in groups:
        path, taken = write_segment(
            loaded,
            [row.value for row in group],
            given,
            Path(tempfile.mkdtemp(prefix="piece", dir=options.scratch)),
        )
        yield _Piece(group, path, taken, _runner(path, options).part_of(whole))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What samples are run with.

    Attributes:
        runner: The graph as a whole, returning its inner values.
        right: What they should be.
        dtypes: Value -> its type in the graph.
        result: Where sums are kept.
    """

    runner: CacheRunner
    right: RightValues
    dtypes: Mapping[str, str]
    result: LayerComparison

    def add(self, pieces: Sequence[_Piece], sample: Mapping[str, Array]) -> None:
        """Run one sample."""
        for piece in pieces:
            self._add_piece(piece, sample)
        self.result.samples += 1

    def _add_piece(self, piece: _Piece, sample: Mapping[str, Array]) -> None:
        names = [row.value for row in piece.rows]
        candidates = self.right.run(sample, list(dict.fromkeys([*names, *piece.taken])))
        unclear = [name for name in piece.taken if len(candidates.get(name, ())) > 1]
        feeds = {spec.name: sample[spec.name] for spec in self.runner.inputs}
        whole = self.runner.run(feeds, list(dict.fromkeys([*names, *unclear])))
        right = {
            name: _nearest(arrays, whole.get(name))
            for name, arrays in candidates.items()
            if arrays
        }
        rows = [row for row in piece.rows if row.value in right]
        for row in rows:
            row.total.add(right[row.value], whole[row.value])
        lacking = [name for name in piece.taken if name not in right]
        if lacking:
            self._note(f"`{lacking[0]}` has no right value in one sample")
            return
        fed = {f"{FED}{name}": _as_type(right[name], self.dtypes[name]) for name in piece.taken}
        plain = {
            spec.name: sample[spec.name] for spec in piece.runner.inputs if spec.name in sample
        }
        try:
            own = piece.runner.run({**fed, **plain})
        except StageError as err:
            self._note(err.message)
            return
        for row in rows:
            row.own.add(right[row.value], own[row.value])

    def _note(self, problem: str) -> None:
        if problem not in self.result.problems:
            self.result.problems.append(problem)


def _nearest(arrays: Sequence[Array], found: Array | None) -> Array:
    """Of several arrays that a module returns the one that the value is."""
    if found is None or len(arrays) == 1:
        return arrays[0]
    alike = [array for array in arrays if array.shape == found.shape]
    return min(
        alike or arrays[:1],
        key=lambda array: (
            float(np.square(array.astype(np.float64) - found).sum())
            if array.shape == found.shape
            else 0.0
        ),
    )


def _as_type(array: Array, dtype: str) -> Array:
    """As the graph reads it; what float16 cannot hold is cut, for that fault is of the node before."""
    if dtype == "float16":
        array = np.clip(array, -_FLOAT16_MAX, _FLOAT16_MAX)
    return array.astype(dtype)
