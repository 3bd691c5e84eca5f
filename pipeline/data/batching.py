"""Padded batches of mixed lengths, made so that padding is really exercised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.data.sample_set import SampleSet


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, padded to the longest of them.

    Attributes:
        indices: Which samples; row `i` is sample `indices[i]`.
        lengths: Valid tokens of each row; what lies behind them is padding.
        feeds: Input name -> int64 (batch, sequence).
    """

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    feeds: Mapping[str, NDArray[np.int64]]


def mix_lengths(lengths: Sequence[int], batch_size: int) -> tuple[tuple[int, ...], ...]:
    """Which samples go together: most of a batch is of like length, a quarter is short.

    Each batch takes the longest samples that are left, and for a quarter of its rows the shortest.
    Every batch then has rows that are mostly padding, while the few very long samples share
    batches, so that they do not make all the others expensive.

    Args:
        lengths: Length of each sample.
        batch_size: Rows of a batch, at least 1; the last batch may have fewer.

    Returns:
        Indices by batch; each index once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    # The index breaks ties, so equal lengths cannot make two runs differ.
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    front, back = 0, len(order)
    batches = []
    while front < back:
        size = min(batch_size, back - front)
        short = max(size // 4, min(1, size - 1))
        long = size - short
        batches.append((*order[front : front + long], *order[back - short : back]))
        front, back = front + long, back - short
    return tuple(batches)


def pad_batch(
    samples: Sequence[Mapping[str, NDArray[np.int64]]], padding: Mapping[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Stack samples, filled on the right up to the longest.

    Args:
        samples: For each sample, int64 (sequence,) by input name; all inputs of one sample have
            the same length.
        padding: Input name -> fill value; exactly these inputs are in the result.

    Returns:
        int64 (batch, sequence) by input name; fresh arrays.
    """
    longest = max(len(next(iter(sample.values()))) for sample in samples)
    feeds = {}
    for name, fill in padding.items():
        rows = np.full((len(samples), longest), fill, dtype=np.int64)
        for row, sample in zip(rows, samples, strict=True):
            row[: len(sample[name])] = sample[name]
        feeds[name] = rows
    return feeds


def iter_batches(
    samples: SampleSet, batch_size: int, inputs: Sequence[str] | None = None
) -> Iterator[Batch]:
    """All samples in padded batches of mixed lengths, one batch in memory at a time.

    Args:
        samples: An open sample set.
        batch_size: Rows of a batch, at least 1.
        inputs: Inputs to feed, all of them in the sample set; all that it has when None.
    """
    wanted = samples.input_names if inputs is None else tuple(inputs)
    padding = {name: samples.index.padding[name] for name in wanted}
    for indices in mix_lengths(samples.lengths, batch_size):
        feeds = pad_batch(samples.read(indices), padding)
        yield Batch(indices, tuple(samples.lengths[index] for index in indices), feeds)
