"""Padded batches of mixed lengths, made so that padding is really exercised."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, SampleSet, Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, padded to the largest of them.

    Attributes:
        indices: Which samples; row `i` is sample `indices[i]`.
        extents: For each row, the size of each named axis; what lies behind it is padding.
        feeds: Input name -> (batch, ...).
    """

    indices: tuple[int, ...]
    extents: tuple[Mapping[str, int], ...]
    feeds: Mapping[str, Tensor]


LIKE: Final = 0.75
"""Samples at least this share of the longest one's length are of like length with it."""

MIXED_EVERY: Final = 3
"""One batch in so many has a row that is mostly padding.

On 200 texts and MiniLM such a row in every batch was a fifth of all that was computed. Mutants of masks
and padding are caught as well with a third of them: each is judged by its worst sample, and the check
`invariance` pads on purpose (`scripts/mutants`).
"""


def mix_lengths(lengths: Sequence[int], batch_size: int) -> tuple[tuple[int, ...], ...]:
    """Which samples go together: samples of like length, and now and then one short one.

    Each batch takes the longest samples that are left, of like length; the first, and then each
    `MIXED_EVERY`th, also the shortest one, which is mostly padding there. Nothing else is computed in
    vain: the time of all batches together is what comparing a graph takes.

    Args:
        lengths: Length of each sample.
        batch_size: Most rows of a batch, at least 1.

    Returns:
        Indices by batch; each index once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    # The index breaks ties, so equal lengths cannot make two runs differ.
    left = deque(sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)))
    batches: list[tuple[int, ...]] = []
    while left:
        batch = [left.popleft()]
        least = LIKE * lengths[batch[0]]
        is_mixed = len(batches) % MIXED_EVERY == 0
        short = [left.pop()] if left and is_mixed and batch_size > 1 else []
        while left and len(batch) + len(short) < batch_size and lengths[left[0]] >= least:
            batch.append(left.popleft())
        batches.append((*batch, *short))
    return tuple(batches)


def pad_batch(
    samples: Sequence[Mapping[str, Tensor]], inputs: Mapping[str, InputSpec]
) -> dict[str, Tensor]:
    """Stack samples, filled at the end of each axis up to the largest.

    Args:
        samples: For each sample its tensors by input name.
        inputs: Input name -> its type and fill; exactly these inputs are in the result.

    Returns:
        (batch, ...) by input name; fresh arrays.
    """
    feeds = {}
    for name, spec in inputs.items():
        tensors = [sample[name] for sample in samples]
        shape = np.max([tensor.shape for tensor in tensors], axis=0).astype(int)
        rows = np.full((len(tensors), *shape), spec.fill, dtype=spec.dtype)
        for row, tensor in zip(rows, tensors, strict=True):
            row[tuple(slice(size) for size in tensor.shape)] = tensor
        feeds[name] = rows
    return feeds


def iter_batches(
    samples: SampleSet, batch_size: int, inputs: Sequence[str] | None = None
) -> Iterator[Batch]:
    """All samples in padded batches of mixed sizes, one batch in memory at a time.

    Args:
        samples: An open sample set.
        batch_size: Most rows of a batch, at least 1.
        inputs: Inputs to feed, all of them in the sample set; all that it has when None.
    """
    wanted = samples.input_names if inputs is None else tuple(inputs)
    specs = {name: samples.index.inputs[name] for name in wanted}
    # Samples without named axes are all of one size, and stay in their order.
    sizes = [math.prod(entry.extents.values()) for entry in samples.entries]
    for indices in mix_lengths(sizes, batch_size):
        feeds = pad_batch(samples.read(indices), specs)
        yield Batch(indices, tuple(samples.entries[index].extents for index in indices), feeds)
