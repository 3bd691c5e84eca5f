"""How fast this machine reads memory and multiplies at best, to say what share of it a model gets."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES: Final = 1 << 29
"""Read in one go: far more than any cache holds."""

WIDTH: Final = 2048
"""Of the square matrices that are multiplied: 17 billion operations, a tenth of a second on a core."""

ROUNDS: Final = 3
"""The best of them counts: whatever else the machine does can only make it slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePeaks:
    """The best of a few rounds.

    Attributes:
        read_bytes_per_s: Of main memory, by as many threads as asked for.
        float32_flops_per_s: Of products of float32 matrices, by numpy's library on all cores.
    """

    read_bytes_per_s: float
    float32_flops_per_s: float

    def or_better(self, other: MachinePeaks) -> MachinePeaks:
        """The better of each: a machine that is busy for a while is not slower for that."""
        return MachinePeaks(
            read_bytes_per_s=max(self.read_bytes_per_s, other.read_bytes_per_s),
            float32_flops_per_s=max(self.float32_flops_per_s, other.float32_flops_per_s),
        )


def measure_peaks(
    threads: int, *, read_bytes: int = READ_BYTES, width: int = WIDTH
) -> MachinePeaks:
    """Measure both; takes a second or two.

    Args:
        threads: How many read at once.
        read_bytes: How much they read together.
        width: Of the matrices.
    """
    values = np.ones(read_bytes // 4, np.float32)
    parts = np.array_split(values, threads)
    # Integers that are or-ed together: nothing to wait for but the memory.
    words = [part[: part.size // 2 * 2].view(np.uint64) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        read_s = _best(lambda: list(pool.map(np.bitwise_or.reduce, words)))
    square = np.ones((width, width), np.float32)
    product_s = _best(lambda: square @ square)
    return MachinePeaks(
        read_bytes_per_s=sum(part.nbytes for part in words) / read_s,
        float32_flops_per_s=2 * width**3 / product_s,
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of some rounds, after one that only warms up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
