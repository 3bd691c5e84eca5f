"""Matrices in 4 or 8 bits, symmetric around zero: `value = scale * integer`, rounded half to even.

One scale serves a *block* of consecutive weights along the input of the layer, or all of them.
Source: DequantizeLinear of ONNX opset 21, with `block_size` and `axis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import ml_dtypes
import numpy as np

from pipeline.graph.quantized_weights import rounded_scale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Bits = Literal[4, 8]
Method = Literal["rtn", "clip"]

LARGEST: Final[dict[Bits, int]] = {4: 7, 8: 127}
"""Largest integer; the smallest is its negative, so that zero is in the middle."""

STORED: Final[dict[Bits, np.dtype[Any]]] = {4: np.dtype(ml_dtypes.int4), 8: np.dtype(np.int8)}

SHARES: Final = tuple(number / 20 for number in range(20, 11, -1))
"""Of the largest weight of a block, where its integers may end (method `clip`)."""

SMALLEST_STEP: Final = float(np.finfo(np.float32).tiny)
"""What is smaller is no step of a weight of any type, and is not divided by."""

_ELEMENTS: Final = 1 << 20
"""That are worked on at a time, so that memory does not depend on the size of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockQuantized:
    """A weight in few bits.

    Attributes:
        values: int4 or int8, the shape of the weight.
        scale: Of the weight's own type; the shape of the weight with the number of blocks in
            place of the inputs, or (outputs,) when there is one scale for each output.
    """

    values: NDArray[Any]
    scale: NDArray[Any]


def quantize_blocks(
    weight: NDArray[Any], *, axis: int, bits: Bits, block_size: int | None, method: Method
) -> BlockQuantized:
    """Quantise a matrix.

    `rtn` rounds to the nearest integer with the scale by the largest weight of each block: no error
    is more than half a step. `clip` tries smaller scales, which cut the largest weights off and
    round the others more finely, and takes the one with the least sum of squared errors.

    Args:
        weight: float32, float16 or bfloat16, two axes.
        axis: The one along which the inputs of the layer lie.
        bits: 4 or 8.
        block_size: How many inputs share a scale, a divisor of their number; None: all.
        method: How scales are found.

    Raises:
        ValueError: when the block does not divide the inputs.
    """
    rows = np.moveaxis(weight, axis, 1)
    outputs, inputs = rows.shape
    size = inputs if block_size is None else block_size
    if inputs % size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {size}")
    values = np.empty((outputs, inputs), STORED[bits])
    scale = np.empty((outputs, inputs // size), weight.dtype)
    for part in _parts(outputs, inputs):
        blocks = rows[part].astype(np.float32).reshape(-1, inputs // size, size)
        found = _scales(blocks, bits, method, weight.dtype)
        scale[part] = found
        values[part] = _integers(blocks, found, bits).reshape(-1, inputs).astype(STORED[bits])
    if block_size is None:
        return BlockQuantized(values=np.moveaxis(values, 1, axis), scale=scale.reshape(-1))
    return BlockQuantized(values=np.moveaxis(values, 1, axis), scale=np.moveaxis(scale, 1, axis))


def _parts(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _scales(
    blocks: NDArray[np.float32], bits: Bits, method: Method, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Of blocks (outputs, blocks, size), in `dtype`; (outputs, blocks)."""
    largest = np.abs(blocks).max(axis=2) / np.float32(LARGEST[bits])
    best = stored_scale(largest, dtype)
    if method == "rtn":
        return best
    least = _squared_errors(blocks, best, bits)
    for share in SHARES[1:]:
        tried = stored_scale(largest * np.float32(share), dtype)
        errors = _squared_errors(blocks, tried, bits)
        best = np.where(errors < least, tried, best)
        least = np.minimum(errors, least)
    return best


def _squared_errors(
    blocks: NDArray[np.float32], scale: NDArray[Any], bits: Bits
) -> NDArray[np.float32]:
    restored = _integers(blocks, scale, bits) * scale.astype(np.float32)[..., None]
    result: NDArray[np.float32] = np.square(blocks - restored).sum(axis=2)
    return result


def _integers(blocks: NDArray[np.float32], scale: NDArray[Any], bits: Bits) -> NDArray[np.float32]:
    steps = np.rint(blocks / scale.astype(np.float32)[..., None])
    result: NDArray[np.float32] = np.clip(steps, -LARGEST[bits], LARGEST[bits])
    return result


def stored_scale(scale: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Scales in the type of the weight: rounded up, because one that is too small cuts weights off.

    Where there are nothing but zeros, or next to nothing (`SMALLEST_STEP`), the scale is 1. float16 has
    few bits for scales below 2^-14, and its weights have no more.
    """
    return rounded_scale(np.where(scale < SMALLEST_STEP, np.float32(1), scale), dtype)
