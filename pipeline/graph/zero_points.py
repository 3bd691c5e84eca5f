"""Matrices in 4 bits with a zero point for each block: `value = scale * (integer - zero_point)`.

Integers and zero points are uint4, as DequantizeLinear of ONNX opset 21 and ONNX Runtime's `MatMulNBits` and
`GatherBlockQuantized` take them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from pipeline.graph.blockwise import parts_of
from pipeline.graph.weight_methods.asymmetric import ZERO_POINT_METHODS

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED_UNSIGNED: Final = np.dtype(ml_dtypes.uint4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPointQuantized:
    """A weight in 4 bits.

    Attributes:
        values: uint4, the shape of the weight.
        scale: Of the weight's own type; the shape of the weight with the number of blocks in place of
            the inputs, or (outputs,) when there is one scale for each output.
        zero_point: uint4, the shape of `scale`.
    """

    values: NDArray[Any]
    scale: NDArray[Any]
    zero_point: NDArray[Any]


def quantize_with_zero_points(
    weight: NDArray[Any],
    *,
    axis: int,
    block_size: int | None,
    method: str,
    threads: int = 1,
) -> ZeroPointQuantized:
    """Quantise a matrix.

    Args:
        weight: float32, float16 or bfloat16, two axes.
        axis: The one along which the inputs of the layer lie.
        block_size: How many inputs share a scale, a divisor of their number; None: all.
        method: A key of `ZERO_POINT_METHODS`.
        threads: How many parts of it are worked on at a time; the result is the same.

    Raises:
        ValueError: when the block does not divide the inputs.
    """
    rows = np.moveaxis(weight, axis, 1)
    outputs, inputs = rows.shape
    size = inputs if block_size is None else block_size
    if inputs % size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {size}")
    values = np.empty((outputs, inputs), STORED_UNSIGNED)
    scale = np.empty((outputs, inputs // size), weight.dtype)
    zero = np.empty(scale.shape, STORED_UNSIGNED)

    def quantize(part: slice) -> None:
        blocks = rows[part].astype(np.float32).reshape(-1, inputs // size, size)
        grid = ZERO_POINT_METHODS[method].find(blocks, weight.dtype)
        scale[part], zero[part] = grid.scale, grid.zero.astype(STORED_UNSIGNED)
        values[part] = grid.integers(blocks).reshape(-1, inputs).astype(STORED_UNSIGNED)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(quantize, parts_of(outputs, inputs)))  # a list, so that errors are raised
    turned = np.moveaxis(values, 1, axis)
    if block_size is None:
        return ZeroPointQuantized(values=turned, scale=scale.ravel(), zero_point=zero.ravel())
    return ZeroPointQuantized(
        values=turned, scale=np.moveaxis(scale, 1, axis), zero_point=np.moveaxis(zero, 1, axis)
    )
