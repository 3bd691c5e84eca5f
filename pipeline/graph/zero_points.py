"""Matrices in 4 bits with a zero point for each block: `value = scale * (integer - zero_point)`.

Integers and zero points are uint4, as DequantizeLinear of ONNX opset 21 and ONNX Runtime's `MatMulNBits` and
`GatherBlockQuantized` take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from pipeline.graph.block_views import as_blocks, for_parts
from pipeline.graph.weight_methods.asymmetric import ZERO_POINT_METHODS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.block_views import Part

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
    inputs, outputs = weight.shape[axis], weight.shape[1 - axis]
    size = inputs if block_size is None else block_size
    if inputs % size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {size}")
    stored = np.empty(weight.shape, STORED_UNSIGNED)
    shape = [inputs // size if at == axis else outputs for at in range(2)]
    steps, zeros = np.empty(shape, weight.dtype), np.empty(shape, STORED_UNSIGNED)
    values = as_blocks(stored, axis, size)
    scale, zero = np.moveaxis(steps, axis, 1), np.moveaxis(zeros, axis, 1)

    def quantize(part: Part, blocks: NDArray[np.float32]) -> None:
        grid = ZERO_POINT_METHODS[method].find(blocks, weight.dtype)
        # By way of uint8: from floats straight to uint4 takes five times as long.
        scale[part], zero[part] = grid.scale, grid.zero.astype(np.uint8).astype(STORED_UNSIGNED)
        values[part] = grid.integers(blocks).astype(np.uint8).astype(STORED_UNSIGNED)

    for_parts(quantize, weight, axis=axis, size=size, threads=threads)
    if block_size is None:
        return ZeroPointQuantized(values=stored, scale=steps.ravel(), zero_point=zeros.ravel())
    return ZeroPointQuantized(values=stored, scale=steps, zero_point=zeros)
