"""Compares a graph in float8_e4m3fn with the float graph, as `quantization_audit` does for integers.

The rows are the same kinds; two of them mean something else, for the grid of floats is not uniform:

| kind           | what is compared                                                | right          |
|----------------|-----------------------------------------------------------------|----------------|
| `weight_error` | distance of a stored number from the float weight over its      | half a step    |
|                | scale, in steps of float8 at that place                         |                |
| `weight_step`  | scale over the one that makes 448 of the largest of its weights | 1              |

A scale that is twice too large costs float8 nearly nothing (its steps are a share of the number), so no
comparison of outputs shows it: these rows and `activation_scales` do, as long as numbers are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.graph.quantization_audit import Auditor, grid_faults, largest_error
from pipeline.graph.quantized_weights import FLOAT8, FLOAT8_MAX, rounded_scale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.graph.unquantized import StoredConstant

SMALLEST_STEP: Final = 2.0**-9
"""Of float8_e4m3fn, below 2^-6; above it a step is an eighth of a power of two."""

_MANTISSA_BITS: Final = 3


class Float8Auditor(Auditor):
    """Other rules for numbers and scales of weights."""

    def _integers(self, stored: StoredConstant) -> Iterator[str]:
        if stored.values.dtype == FLOAT8 and np.isnan(stored.values.astype(np.float32)).any():
            yield "has numbers that are NaN"
        yield from grid_faults(stored, is_symmetric=True)

    def _error(
        self, stored: StoredConstant, content: NDArray[Any]
    ) -> tuple[float, tuple[int, ...]]:
        return largest_error(stored, content, _distances)

    def _ratio(
        self,
        stored: StoredConstant,
        content: NDArray[Any],
        axis: int | None,
        least: NDArray[Any] | None,
    ) -> tuple[float, int]:
        del least  # there are no biases in integers
        return _scale_ratio(stored, content, axis)


def _distances(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    """In steps of float8 at each place."""
    result: NDArray[np.float32] = np.abs(wanted - found) / _step_at(wanted)
    return result


def _step_at(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The distance of neighbouring numbers of float8 around each number, up to 448."""
    _, exponents = np.frexp(np.minimum(np.abs(numbers), np.float32(FLOAT8_MAX)))
    # frexp has numbers from one half to one.
    steps = np.ldexp(np.float32(1), exponents - 1 - _MANTISSA_BITS)
    least: NDArray[np.float32] = np.maximum(steps, np.float32(SMALLEST_STEP))
    return least


def _scale_ratio(
    stored: StoredConstant, content: NDArray[Any], axis: int | None
) -> tuple[float, int]:
    """The scale farthest from what its weights need, as a factor of 1 or more; and its channel."""
    if stored.values.shape != content.shape:
        return np.inf, 0
    others = None if axis is None else tuple(n for n in range(content.ndim) if n != axis)
    largest = np.atleast_1d(np.abs(content.astype(np.float32)).max(axis=others))
    scales = stored.scale.astype(np.float64).reshape(-1)
    if scales.size not in {1, largest.size}:
        return np.inf, 0
    needed = (largest / FLOAT8_MAX).astype(np.float32)
    used = needed >= np.finfo(np.float32).tiny
    exact = rounded_scale(np.where(used, needed, np.float32(1)), stored.scale.dtype)
    ratios = np.where(used, scales / exact.astype(np.float64), 1.0)
    with np.errstate(all="ignore"):
        ratios = np.maximum(ratios, 1 / ratios)
    worst = int(np.argmax(ratios))  # of NaN, the first one
    return float(ratios[worst]), worst
