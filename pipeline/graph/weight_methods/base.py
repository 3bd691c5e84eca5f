"""What a method of rounding weights is: a value that says how scales are found, and what is least.

All of them are symmetric: `value = scale * integer`, with integers from `SMALLEST` to `LARGEST`, one
scale a block. Blocks are float32 (outputs, blocks, size), scales (outputs, blocks) in the type of the
weight.

Methods find scales that are positive. Four bits reach one step further below zero than above it: a scale
may be negative where the runtime takes that, so that the largest weight of each block, whatever its sign,
is on the longer side (`signs_of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from pipeline.graph.quantized_weights import rounded_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Blocks: TypeAlias = NDArray[np.float32]
    Scales: TypeAlias = NDArray[Any]

Bits = Literal[4, 8]

LARGEST: Final[dict[Bits, int]] = {4: 7, 8: 127}
"""Largest integer."""

SMALLEST: Final[dict[Bits, int]] = {4: -8, 8: -127}
"""Smallest integer. In 4 bits a step more is an eighth of what a block loses; in 8 bits it is nothing."""

SMALLEST_STEP: Final = float(np.finfo(np.float32).tiny)
"""What is smaller is no step of a weight of any type, and is not divided by."""

SHARES: Final = tuple(number / 20 for number in range(20, 11, -1))
"""Of the largest weight of a block, where its integers may end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMethod:
    """How weights are rounded.

    Attributes:
        name: As a recipe says it.
        find_scales: (blocks, bits, type of the scales) -> scales.
        loss: (errors, blocks) -> (outputs, blocks): what its scales make least, in the unit of a
            square; None when a scale follows from the largest weight alone.
        is_calibrated: Its integers also hang on what goes into the product, see
            `pipeline.graph.weight_methods.compensation`; a weight may then be more than half a step
            from its float weight on purpose.
    """

    name: str
    find_scales: Callable[[Blocks, Bits, np.dtype[Any]], Scales]
    loss: Callable[[Blocks, Blocks], NDArray[np.float32]] | None = None
    is_calibrated: bool = False


def stored_scale(scale: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Scales in the type of the weight: rounded up, because one that is too small cuts weights off.

    Where there are nothing but zeros, or next to nothing (`SMALLEST_STEP`), the scale is 1. float16 has
    few bits for scales below 2^-14, and its weights have no more.
    """
    return rounded_scale(np.where(scale < SMALLEST_STEP, np.float32(1), scale), dtype)


def whole_steps(blocks: Blocks, bits: Bits) -> NDArray[np.float32]:
    """The smallest steps that reach the least and the largest weight of each block."""
    above = blocks.max(axis=2) / np.float32(LARGEST[bits])
    steps: NDArray[np.float32] = np.maximum(above, blocks.min(axis=2) / np.float32(SMALLEST[bits]))
    return steps


def signs_of(blocks: Blocks) -> NDArray[np.float32]:
    """Of each block the sign of a scale with which its largest weight has a negative integer, 1 or -1."""
    is_above = blocks.max(axis=2) > -blocks.min(axis=2)
    return np.where(is_above, np.float32(-1), np.float32(1))


def integers_of(blocks: Blocks, scale: Scales, bits: Bits) -> NDArray[np.float32]:
    """The nearest integers, as floats."""
    # In place: most of the time would go into new memory otherwise.
    result: NDArray[np.float32] = blocks / scale.astype(np.float32)[..., None]
    np.rint(result, out=result)
    return np.clip(result, SMALLEST[bits], LARGEST[bits], out=result)


def squares(errors: Blocks, blocks: Blocks) -> NDArray[np.float32]:
    """Sum of the squared errors of each block."""
    del blocks
    result: NDArray[np.float32] = np.square(errors).sum(axis=2)
    return result


def search_scales(
    blocks: Blocks,
    bits: Bits,
    dtype: np.dtype[Any],
    loss: Callable[[Blocks, Blocks], NDArray[np.float32]],
    shares: Sequence[float] = SHARES,
) -> Scales:
    """Of a few scales for each block the one with the least loss; the first is that of `rtn`."""
    largest = whole_steps(blocks, bits)
    best = stored_scale(largest * np.float32(shares[0]), dtype)
    least = loss_of(blocks, best, bits, loss)
    for share in shares[1:]:
        tried = stored_scale(largest * np.float32(share), dtype)
        errors = loss_of(blocks, tried, bits, loss)
        best = np.where(errors < least, tried, best)
        least = np.minimum(errors, least)
    return best


def loss_of(
    blocks: Blocks,
    scale: Scales,
    bits: Bits,
    loss: Callable[[Blocks, Blocks], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """What a scale costs each block, (outputs, blocks)."""
    errors = integers_of(blocks, scale, bits)
    errors *= scale.astype(np.float32)[..., None]
    np.subtract(blocks, errors, out=errors)
    return loss(errors, blocks)
