"""`moments.json`: what goes into each product, summed up: `X^T X / n` and the mean of `|X|`.

Moments of many inputs are large (64 MiB for 4096), so each lies in a file of its own and is read when it
is needed. They are gathered in passes over the samples, so that no more than a set amount of them is in
memory; each pass computes only its own tensors.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from pipeline.calibration.moment_sums import MomentSums, bytes_of_sums
from pipeline.calibration.statistics import mask_of, real_values
from pipeline.data.batching import iter_batches
from pipeline.errors import QuantizationError
from pipeline.records import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.weighted_layers import NeededTensor
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    Floats = NDArray[np.float32]

MOMENTS_FILE: Final = "moments.json"

LARGEST_PASS_BYTES: Final = 1 << 30
"""Of moments that are in memory at the same time; one tensor alone may be larger."""


class TensorMoments(Frozen):
    """One tensor that products read.

    Attributes:
        names: All names of the same numbers in the graph that was run, as in `ranges.json`.
        inputs: Numbers of one row, the last axis.
        count: Rows seen, those of padding not among them.
    """

    names: tuple[str, ...]
    inputs: int
    count: int


class MomentsIndex(Frozen):
    """`moments.json`, version 1; files are named after the place in `tensors`.

    Attributes:
        samples: How many samples were seen.
        has_products: There is `X^T X`, and not the mean of `|X|` alone.
        tensors: In the order of the graph.
    """

    schema_version: Literal[1] = 1
    samples: int
    has_products: bool
    tensors: tuple[TensorMoments, ...]


class Moments:
    """Moments that a stage wrote, read one at a time.

    Args:
        directory: Where they are.

    Raises:
        QuantizationError: when `moments.json` is missing or not of version 1.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            text = (directory / MOMENTS_FILE).read_bytes()
            self.index = MomentsIndex.model_validate_json(text)
        except FileNotFoundError as err:
            raise QuantizationError(f"there is no `{MOMENTS_FILE}`", where=str(directory)) from err
        except ValidationError as err:
            raise QuantizationError(
                f"`{MOMENTS_FILE}` is not of version 1", where=str(directory)
            ) from err
        self._places = {
            name: place for place, tensor in enumerate(self.index.tensors) for name in tensor.names
        }

    def place(self, name: str) -> int | None:
        """The place in `index.tensors` of the tensor with this name; None when there is none."""
        return self._places.get(name)

    def products(self, place: int) -> Floats:
        """`X^T X / n`, float32 (inputs, inputs)."""
        return self._read(_products_file(place))

    def magnitudes(self, place: int) -> Floats:
        """Mean of `|X|`, float32 (inputs,)."""
        return self._read(_magnitudes_file(place))

    def _read(self, name: str) -> Floats:
        try:
            loaded: Floats = np.load(self._directory / name, allow_pickle=False)
        except (OSError, ValueError) as err:
            raise QuantizationError(f"`{name}` cannot be read: {err}") from err
        return loaded


def _products_file(place: int) -> str:
    return f"{place:05d}.products.npy"


def _magnitudes_file(place: int) -> str:
    return f"{place:05d}.magnitudes.npy"


def observe_moments(
    runner: OnnxRuntimeRunner,
    samples: SampleSet,
    tensors: Sequence[NeededTensor],
    directory: Path,
    *,
    has_products: bool,
    threads: int,
    progress: Callable[[int, int], None],
) -> MomentsIndex:
    """Gather and write the moments of some tensors over all samples.

    One sample at a time, added up in their order, so that nothing is padded and the same samples
    give the same numbers.

    Args:
        runner: A loaded model that returns the tensors, or takes them as inputs; called from
            several threads.
        samples: At least one; they must have all inputs of the model.
        tensors: Those to look at; the last axis of each is what products read.
        directory: Where `moments.json` and the files beside it go.
        has_products: Whether `X^T X` is needed.
        threads: Samples that run at the same time.
        progress: Told how many samples are done, and of how many, passes added up.

    Raises:
        QuantizationError: when there are no samples, an input is missing, or a tensor has numbers
            that are NaN or infinite.
        StageError: when a sample cannot be run.
    """
    inputs = tuple(spec.name for spec in runner.inputs)
    lacking = [name for name in inputs if name not in samples.input_names]
    if not len(samples) or lacking:
        raise QuantizationError(
            f"the calibration samples have no `{lacking[0]}`"
            if lacking
            else "there are no calibration samples",
            hint="set `data.calibration` to samples of this task",
        )
    sizes = _sizes(runner, samples, tensors, inputs)
    passes = list(_passes(sizes, LARGEST_PASS_BYTES if has_products else 1 << 62))
    found: list[TensorMoments] = []
    for number, (start, end) in enumerate(passes):
        part = tensors[start:end]
        sums = {
            tensor.name: MomentSums(size, has_products=has_products)
            for tensor, size in zip(part, sizes[start:end], strict=True)
        }
        computed = [name for name in sums if name not in inputs]
        runs = _runs(runner, samples, inputs, computed, threads)
        for done in _added(sums, runs, threads):
            progress(number * len(samples) + done, len(passes) * len(samples))
        for place, tensor in enumerate(part, start):
            each = sums.pop(tensor.name)
            _write(each, directory, place, has_products=has_products)
            found.append(TensorMoments(names=tensor.names, inputs=each.inputs, count=each.count))
    index = MomentsIndex(samples=len(samples), has_products=has_products, tensors=tuple(found))
    text = f"{index.model_dump_json(indent=1)}\n"
    (directory / MOMENTS_FILE).write_text(text, encoding="utf-8")
    return index


def _added(
    sums: Mapping[str, MomentSums], runs: Iterator[dict[str, Array]], threads: int
) -> Iterator[int]:
    """Add the values of every run, each tensor's in their order; yields how many are added."""

    def add(name: str, values: Array, sample: int) -> None:
        rows = values.reshape(-1, sums[name].inputs).astype(np.float32, copy=False)
        if not sums[name].add(rows):
            raise QuantizationError(
                f"tensor `{name}` has numbers that are NaN or infinite, with calibration sample "
                f"{sample}",
                hint="leave this sample out, or use precision fp32 for this model",
            )

    # Tensors are shared out; threads of BLAS besides would only be in each other's way, and the last bits
    # of a sum hang on their number.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for sample, values in enumerate(runs):
            for future in [pool.submit(add, name, values[name], sample) for name in sums]:
                future.result()
            yield sample + 1


def _write(sums: MomentSums, directory: Path, place: int, *, has_products: bool) -> None:
    np.save(directory / _magnitudes_file(place), sums.magnitudes())
    if has_products:
        np.save(directory / _products_file(place), sums.products())


def _sizes(
    runner: OnnxRuntimeRunner,
    samples: SampleSet,
    tensors: Sequence[NeededTensor],
    inputs: Sequence[str],
) -> list[int]:
    """The last axis of each tensor, from the shortest sample."""
    shortest = min(
        range(len(samples)), key=lambda place: tuple(samples.entries[place].extents.values())
    )
    (sample,) = samples.read([shortest])
    feeds = {name: sample[name][None] for name in inputs}
    computed = [tensor.name for tensor in tensors if tensor.name not in inputs]
    values = {**feeds, **runner.run(feeds, computed)}
    return [values[tensor.name].shape[-1] for tensor in tensors]


def _passes(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """(Start, end) of the tensors of each pass."""
    start, held = 0, 0
    for place, size in enumerate(sizes):
        needed = bytes_of_sums(size)
        if place > start and held + needed > limit:
            yield start, place
            start, held = place, 0
        held += needed
    if sizes:
        yield start, len(sizes)


def _runs(
    runner: OnnxRuntimeRunner,
    samples: SampleSet,
    inputs: Sequence[str],
    computed: Sequence[str],
    threads: int,
) -> Iterator[dict[str, Array]]:
    """The real positions of tensors, sample by sample in order; few samples are in memory."""

    def values(feeds: dict[str, Array]) -> dict[str, Array]:
        mask = mask_of(feeds)
        found = {**feeds, **runner.run(feeds, computed)}
        return {name: real_values(array, mask) for name, array in found.items()}

    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[Future[dict[str, Array]]] = deque()
        for batch in iter_batches(samples, 1, inputs):
            waiting.append(pool.submit(values, dict(batch.feeds)))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
