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

from pipeline.errors import QuantizationError
from pipeline.graph.weight_methods.base import LARGEST, integers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Bits, Blocks, Scales

    Doubles = NDArray[np.float64]

DAMPING: Final = 0.01
"""Of the mean of the diagonal of H, added to it (Frantar et al.): inputs that calibration never saw move."""

_COLUMNS: Final = 64
"""Inputs that are rounded one by one before the rest learns of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The moments of what goes into a product, ready to round with.

    Attributes:
        upper: float64 (inputs, inputs), R of the module, of inputs in `order`.
        order: The inputs, most active first (ties by place); the order in which they are rounded.
    """

    upper: Doubles
    order: NDArray[np.intp]

    def spread(self, errors: NDArray[Any]) -> Doubles:
        """`d R` of errors (outputs, inputs), in `order`: its squares are what outputs lose."""
        result: Doubles = errors[:, self.order].astype(np.float64) @ self.upper
        return result


def factor_of(moments: NDArray[np.float32]) -> Factor:
    """The factor of moments (inputs, inputs).

    Raises:
        QuantizationError: when they are no moments: not square, not finite, or not positive.
    """
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        raise QuantizationError(f"moments have shape {list(moments.shape)}, and are no square")
    whole = moments.astype(np.float64)
    diagonal = np.diagonal(whole)
    if not np.isfinite(whole).all() or (diagonal < 0).any():
        raise QuantizationError("moments are negative or no numbers")
    order = np.argsort(-diagonal, kind="stable")
    whole = whole[np.ix_(order, order)]
    whole[np.diag_indices_from(whole)] += DAMPING * float(diagonal.mean()) or 1.0
    try:
        # Upper times its transpose: Cholesky's factor is the other way round.
        lower = np.linalg.cholesky(whole[::-1, ::-1])
    except np.linalg.LinAlgError as err:
        raise QuantizationError("moments are not those of any activation: not positive") from err
    return Factor(upper=np.ascontiguousarray(lower[::-1, ::-1]), order=order)


def round_in_order(blocks: Blocks, scale: Scales, bits: Bits, factor: Factor) -> Blocks:
    """Integers of blocks, as floats; an output that plain rounding serves better has that.

    Args:
        blocks: Of the weight.
        scale: For each block.
        bits: 4 or 8.
        factor: Of what goes into the product.
    """
    outputs, count, size = blocks.shape
    plain = integers_of(blocks, scale, bits)
    flat = plain.reshape(outputs, -1)
    wide = np.repeat(scale.astype(np.float32), size, axis=1)
    # Inputs first: each step of the recursion reads and writes whole rows then.
    weight = blocks.reshape(outputs, -1).T[factor.order].astype(np.float64)
    steps = wide.T[factor.order].astype(np.float64)
    integers, lost = _nearest_planes(weight, steps, LARGEST[bits], factor.upper)
    result = np.empty_like(flat)
    result[:, factor.order] = integers.T
    usual = np.square(factor.spread(blocks.reshape(outputs, -1) - flat * wide)).sum(axis=1)
    chosen: Blocks = np.where((lost <= usual)[:, None], result, flat)
    return chosen.reshape(outputs, count, size)


def _nearest_planes(
    weight: Doubles, steps: Doubles, largest: int, upper: Doubles
) -> tuple[Doubles, Doubles]:
    """Integers (inputs, outputs) in order, and what each output loses, `|d R|^2`."""
    inputs, outputs = weight.shape
    integers, errors = np.empty_like(weight), np.empty_like(weight)
    lost = np.zeros(outputs)
    for start in range(0, inputs, _COLUMNS):
        end = min(start + _COLUMNS, inputs)
        # What the inputs before these have lost, as these see it.
        carried = upper[:start, start:end].T @ errors[:start]
        for place in range(start, end):
            own = upper[place, place]
            here = carried[place - start] / own
            chosen = np.clip(np.rint((weight[place] + here) / steps[place]), -largest, largest)
            integers[place] = chosen
            error = weight[place] - chosen * steps[place]
            errors[place] = error
            lost += np.square((error + here) * own)
            if place + 1 < end:
                ahead = upper[place, place + 1 : end]
                carried[place + 1 - start :] += np.outer(ahead, error)
    return integers, lost
