"""Rounding that makes up for its errors: what one weight loses the next ones of its output take over.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), written as Babai's nearest plane (Chen et al., "The Geometry of LLM Quantization", 2025), which
needs no inverse. With the moments `H = X^T X / n` of what goes into the product, and `H = R R^T`, R upper
triangular, the mean square of what an output loses is

    d H d^T = |d R|^2,    d = w - scale * q

Inputs are taken in order. The choice of `q_j` decides `(d R)_j`, and nothing before it:

    (d R)_j / R_jj = w_j + sum_{i<j} d_i R_ij / R_jj - scale_j q_j

so that q_j is the nearest integer of `w_j + ...`, and `(d R)_j / R_jj` is at most half a step, unless
integers end there. That is what a check can ask of the result without doing it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.errors import QuantizationError
from pipeline.graph.weight_methods.base import LARGEST, SMALLEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Bits, Scales

    Doubles = NDArray[np.float64]
    Floats = NDArray[np.float32]
    Integers = NDArray[np.int8]

DAMPING: Final = 0.01
"""Of the mean of the diagonal of H, added to it (Frantar et al.): inputs that calibration never saw move."""

_COLUMNS: Final = 128
"""Inputs that are rounded before the rest learns of them, by one product of matrices."""

_FEW: Final = 16
"""Of these, inputs whose errors go to each other one by one."""

_PANEL: Final = 512
"""Columns of a factor that are widened to float64 at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The moments of what goes into a product, ready to round with.

    Attributes:
        upper: float32 (inputs, inputs), R of the module, of inputs in `order`; computed in float64.
        order: The inputs, most active first (ties by place); the order in which they are rounded.
    """

    upper: Floats
    order: NDArray[np.intp]

    def spread(self, errors: NDArray[Any]) -> Doubles:
        """`d R` of errors (outputs, inputs), in `order`: its squares are what outputs lose."""
        own = errors[:, self.order].astype(np.float64)
        result = np.empty_like(own)
        for start in range(0, own.shape[1], _PANEL):
            end = min(start + _PANEL, own.shape[1])
            panel = self.upper[:end, start:end].astype(np.float64)  # zeros below
            result[:, start:end] = own[:, :end] @ panel
        return result


def factor_of(moments: Floats) -> Factor:
    """The factor of moments (inputs, inputs); takes 16 bytes for each of them, the result 4.

    Raises:
        QuantizationError: when they are no moments: not square, not finite, or not positive.
    """
    # Not numpy's: that makes three copies, and takes twice as long for 5632 inputs.
    from scipy.linalg.lapack import dpotrf

    if moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        raise QuantizationError(f"moments have shape {list(moments.shape)}, and are no square")
    diagonal = np.diagonal(moments).astype(np.float64)
    if not np.isfinite(moments).all() or (diagonal < 0).any():
        raise QuantizationError("moments are negative or no numbers")
    order = np.argsort(-diagonal, kind="stable")
    # Upper times its transpose: Cholesky's factor is the other way round, so the last comes first.
    backwards = order[::-1]
    whole = np.empty(moments.shape, np.float64)
    for place, row in enumerate(backwards):
        whole[place] = moments[row, backwards]
    whole[np.diag_indices_from(whole)] += DAMPING * float(diagonal.mean()) or 1.0
    # LAPACK counts by columns: it sees the transpose, and writes its lower half in place. With one
    # thread, because the last bits hang on their number.
    with threadpool_limits(1, user_api="blas"):
        _, fault = dpotrf(whole.T, lower=1, clean=1, overwrite_a=1)
    if fault:
        raise QuantizationError("moments are not those of any activation: not positive")
    upper = np.ascontiguousarray(whole.T[::-1, ::-1], dtype=np.float32)
    return Factor(upper=upper, order=order)


def round_in_order(weight: NDArray[Any], scale: Scales, bits: Bits, factor: Factor) -> Integers:
    """Integers of a weight; an output that plain rounding serves better has that.

    Computed in float32, as the authors do; the same for any number of threads.

    Args:
        weight: (outputs, inputs).
        scale: (outputs, blocks), blocks of the same number of inputs each.
        bits: 4 or 8.
        factor: Of what goes into the product.

    Returns:
        int8 (outputs, inputs).
    """
    outputs, inputs = weight.shape
    # Inputs first: each step of the recursion reads and writes whole rows then.
    content = np.ascontiguousarray(weight.T[factor.order], dtype=np.float32)
    steps = np.ascontiguousarray(scale.T, dtype=np.float32)
    ends = (SMALLEST[bits], LARGEST[bits])
    rounding = _Rounding(content, steps, factor.order * scale.shape[1] // inputs, ends)
    for start in range(0, inputs, _COLUMNS):
        rounding.advance(factor.upper, start, min(start + _COLUMNS, inputs))
    result = np.empty((inputs, outputs), np.int8)
    result[factor.order] = rounding.chosen()
    return result.T


class _Rounding:
    """The recursion over the inputs of some outputs; arrays are (inputs, outputs), inputs in order.

    Args:
        content: float32 weight.
        steps: float32 (blocks, outputs); may be negative.
        block_of: The block of each input.
        ends: The smallest and the largest integer there is.
    """

    def __init__(
        self, content: Floats, steps: Floats, block_of: NDArray[np.intp], ends: tuple[int, int]
    ) -> None:
        inputs, outputs = content.shape
        self._content, self._steps, self._block_of = content, steps, block_of
        self._least, self._largest = map(np.float32, ends)
        self._integers = np.empty((inputs, outputs), np.int8)
        self._plain = np.empty((inputs, outputs), np.int8)
        # Errors of this rounding, and beside them those of the plain one: one product serves both.
        self._errors = np.empty((inputs, 2 * outputs), np.float32)
        self._lost = np.zeros(outputs, np.float64)
        self._usual = np.zeros(outputs, np.float64)

    def chosen(self) -> Integers:
        """Of each output the integers that lose less."""
        return np.where(self._lost <= self._usual, self._integers, self._plain)

    def advance(self, upper: Floats, start: int, end: int) -> None:
        """Round inputs `start` to `end`; all before them are done."""
        outputs = self._content.shape[1]
        # In units of the diagonal: `sum_{i<j} d_i R_ij / R_jj`.
        own = np.diagonal(upper)[start:end]
        panel = upper[:end, start:end] / own
        within = panel[start:]
        weight = self._content[start:end]
        steps = self._steps[self._block_of[start:end]]
        errors = self._errors[start:end]
        plain = self._nearest(weight, steps)
        self._plain[start:end] = plain
        np.subtract(weight, plain * steps, out=errors[:, outputs:])
        carried = panel[:start].T @ self._errors[:start]
        usual = carried[:, outputs:] + within.T @ errors[:, outputs:]
        here = carried[:, :outputs]
        integers = self._one_by_one(weight, steps, within, here, errors[:, :outputs])
        self._integers[start:end] = integers
        here += weight
        here -= integers * steps
        squares = np.square(own)
        self._lost += squares @ np.square(here)
        self._usual += squares @ np.square(usual)

    def _nearest(self, numbers: Floats, steps: Floats) -> Floats:
        found: Floats = np.divide(numbers, steps)
        np.rint(found, out=found)
        np.minimum(found, self._largest, out=found)
        np.maximum(found, self._least, out=found)
        return found

    def _one_by_one(
        self, weight: Floats, steps: Floats, within: Floats, carried: Floats, errors: Floats
    ) -> Floats:
        """Integers; `carried` grows by what these inputs give each other, `errors` is written."""
        integers = np.empty_like(weight)
        room = np.empty((_FEW, weight.shape[1]), np.float32)
        count = len(weight)
        for start in range(0, count, _FEW):
            end = min(start + _FEW, count)
            for place in range(start, end):
                row, error = integers[place], errors[place]
                np.add(weight[place], carried[place], out=row)
                np.divide(row, steps[place], out=row)
                np.rint(row, out=row)
                np.minimum(row, self._largest, out=row)
                np.maximum(row, self._least, out=row)
                np.multiply(row, steps[place], out=error)
                np.subtract(weight[place], error, out=error)
                ahead = slice(place + 1, end)
                given = room[: end - place - 1]
                np.multiply(within[place, ahead, None], error, out=given)
                carried[ahead] += given
            carried[end:] += within[start:end, end:].T @ errors[start:end]
        return integers
