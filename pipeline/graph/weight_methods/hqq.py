"""Scales by half-quadratic splitting of a loss that forgives outliers (HQQ), in the symmetric form.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): the loss is the
lp norm of the errors with p = 0.7, errors are shrunk towards zero (the proximal step), and the
parameters are the best ones for what is left. They move the zero point and keep the scale; a symmetric
form has no zero point, so that here it is the scale that moves, `sum(q (w - e)) / sum(q q)`. Of all
steps the scale with the least loss is kept, and `rtn`'s where none is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.graph.weight_methods.base import (
    WeightMethod,
    integers_of,
    loss_of,
    stored_scale,
    whole_steps,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Bits, Blocks, Scales

POWER: Final = 0.7
BETA: Final = 10.0
GROWTH: Final = 1.01
STEPS: Final = 20
"""As the authors have them."""


def robust(errors: Blocks, blocks: Blocks) -> NDArray[np.float32]:
    """The lp norm, squared: in the unit of a square."""
    del blocks
    powers = np.power(np.abs(errors), np.float32(POWER)).mean(axis=2)
    result: NDArray[np.float32] = np.power(powers, np.float32(2 / POWER))
    return result


def shrunk(errors: Blocks, beta: float) -> NDArray[np.float32]:
    """The proximal step of |e|^p, generalised soft thresholding."""
    size = np.abs(errors)
    less = np.power(np.maximum(size, np.float32(1e-12)), np.float32(POWER - 1)) / np.float32(beta)
    result: NDArray[np.float32] = np.sign(errors) * np.maximum(size - less, np.float32(0))
    return result


def _find(blocks: Blocks, bits: Bits, dtype: np.dtype[Any]) -> Scales:
    steps = whole_steps(blocks, bits)
    best = stored_scale(steps, dtype)
    least = loss_of(blocks, best, bits, robust)
    # In units of the step the same threshold serves weights of every size.
    unit = np.where(steps > 0, steps, np.float32(1))[..., None]
    numbers = (blocks / unit).astype(np.float32)
    scale, beta = np.ones_like(steps), BETA
    for _ in range(STEPS):
        integers = integers_of(numbers, scale, bits)
        outliers = shrunk(numbers - integers * scale[..., None], beta)
        below = np.square(integers).sum(axis=2)
        above = (integers * (numbers - outliers)).sum(axis=2)
        scale = np.where((below > 0) & (above > 0), above / np.where(below > 0, below, 1), scale)
        scale = scale.astype(np.float32)
        tried = stored_scale(scale * unit[..., 0], dtype)
        errors = loss_of(blocks, tried, bits, robust)
        best = np.where(errors < least, tried, best)
        least = np.minimum(errors, least)
        beta *= GROWTH
    return best


HQQ: Final = WeightMethod(name="hqq", find_scales=_find, loss=robust)
