"""What calibration keeps of each tensor while samples stream by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.calibration.histogram import Histogram
from pipeline.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.runtimes.base import Array


class TensorStatistics:
    """Lowest, highest and, when asked for, the histogram of one tensor over all samples.

    Args:
        has_histogram: Lowest and highest alone are several times faster.
    """

    def __init__(self, *, has_histogram: bool) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.count = 0
        self.histogram = Histogram() if has_histogram else None

    def add(self, values: Array) -> None:
        """Take numbers into account.

        Args:
            values: Floating point, any shape; not changed.

        Raises:
            QuantizationError: when one of them is NaN or infinite; nothing was counted then.
        """
        if values.size == 0:
            return
        # NaN wins in both, so two numbers tell whether all are finite.
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
            raise QuantizationError(f"{bad} of its {values.size} elements are NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size
        if self.histogram is not None:
            numbers: NDArray[np.float32] = values.astype(np.float32, copy=False)
            self.histogram.add(numbers, max(abs(low), abs(high)))

    def merge(self, other: TensorStatistics) -> None:
        """Take into account what another one has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        if self.histogram is not None and other.histogram is not None:
            self.histogram.merge(other.histogram)


def mask_of(feeds: Mapping[str, Array]) -> NDArray[np.bool_] | None:
    """Which positions of a batch are real, (batch, sequence); None when all of them are."""
    mask = feeds.get("attention_mask")
    if mask is None or mask.all():
        return None
    return mask.astype(bool)


def real_values(array: Array, mask: NDArray[np.bool_] | None) -> Array:
    """The part of an activation that belongs to real positions.

    Args:
        array: (batch, sequence, features ...), or (batch * sequence, features ...) as graphs
            flatten it; anything else, such as (batch, features), has no positions and is taken
            whole, also where there happen to be as many features as positions.
        mask: (batch, sequence), or with more leading axes that the graph has flattened into the
            batch, as (batch, choices, sequence); None when every position is real.
    """
    if mask is None:
        return array
    rows = mask.reshape(-1, mask.shape[-1])
    for positions in (mask, rows):
        if array.ndim > positions.ndim and array.shape[: positions.ndim] == positions.shape:
            return array[positions]
    if array.ndim > 1 and array.shape[0] == mask.size:
        return array[mask.reshape(-1)]
    return array
