"""`ranges.json`: the ranges that calibration found, for whatever quantises with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import ValidationError

from pipeline.calibration.methods import Range
from pipeline.errors import QuantizationError
from pipeline.records import Frozen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.calibration.histogram import Bins

RANGES_FILE: Final = "ranges.json"


class HistogramSummary(Frozen):
    """A histogram in a few numbers.

    Attributes:
        bin_width: Of its grid.
        filled_bins: How many of its bins are not empty.
        magnitude_percentiles: Percent -> the absolute value that so many of the numbers do not
            exceed, to one bin.
    """

    bin_width: float
    filled_bins: int
    magnitude_percentiles: dict[str, float]


class TensorRange(Frozen):
    """One tensor.

    Attributes:
        names: All names of the same numbers in the graph that was calibrated: the tensor itself
            first, then what only reshapes or transposes it.
        count: Numbers seen, those of padding not among them.
        minimum: The lowest number seen.
        maximum: The highest.
        low: Where the method lets an asymmetric range begin, at most 0.
        high: Where it ends, at least 0.
        magnitude: Where a symmetric one ends, at least 0.
        clipped: Share of the numbers outside `[-magnitude, magnitude]`, to one bin.
        histogram: None for method `minmax`, which needs none.
    """

    names: tuple[str, ...]
    count: int
    minimum: float
    maximum: float
    low: float
    high: float
    magnitude: float
    clipped: float
    histogram: HistogramSummary | None


class Ranges(Frozen):
    """`ranges.json`, version 1.

    Attributes:
        method: How ranges were chosen.
        percentile: Of method `percentile`; None for others.
        samples: How many samples were seen.
        tensors: In the order of the graph.
    """

    schema_version: Literal[1] = 1
    method: str
    percentile: float | None
    samples: int
    tensors: tuple[TensorRange, ...]

    def by_name(self) -> dict[str, Range]:
        """Every name of every tensor -> its range."""
        return {
            name: Range(low=tensor.low, high=tensor.high, magnitude=tensor.magnitude)
            for tensor in self.tensors
            for name in tensor.names
        }


def summarize(bins: Bins, percentiles: Sequence[float]) -> HistogramSummary:
    """A histogram in a few numbers; percentiles are the upper ends of bins."""
    running = bins.magnitudes.cumsum()
    places = np.searchsorted(running, np.ceil(np.array(percentiles) / 100 * running[-1]))
    return HistogramSummary(
        bin_width=bins.width,
        filled_bins=int(np.count_nonzero(bins.counts)),
        magnitude_percentiles={
            f"{percent:g}": (int(place) + 1) * bins.width
            for percent, place in zip(percentiles, places, strict=True)
        },
    )


def save_ranges(ranges: Ranges, directory: Path) -> Path:
    """Write `ranges.json`; the same ranges give the same bytes."""
    path = directory / RANGES_FILE
    path.write_text(f"{ranges.model_dump_json(indent=1)}\n", encoding="utf-8")
    return path


def load_ranges(directory: Path) -> Ranges:
    """Read `ranges.json`.

    Raises:
        QuantizationError: when it is missing or not of version 1.
    """
    try:
        return Ranges.model_validate_json((directory / RANGES_FILE).read_bytes())
    except FileNotFoundError as err:
        raise QuantizationError(f"there is no `{RANGES_FILE}`", where=str(directory)) from err
    except ValidationError as err:
        raise QuantizationError(f"not ranges of version 1: {err}", where=RANGES_FILE) from err
