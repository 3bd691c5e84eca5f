"""A weight in 4 or 8 bits as `MatMulNBits` reads it, and back: the same integers, scales and zero points.

The layout is told in `pipeline.graph.matmul_nbits`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from pipeline.errors import StageError
from pipeline.graph.fusions.outcome import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BLOCKS: Final = (128, 64, 32, 16)
"""Tried in this order where one scale serves all inputs."""

SMALLEST_BLOCK: Final = 16
_BITS: Final[dict[np.dtype[Any], int]] = {
    np.dtype(ml_dtypes.int4): 4,
    np.dtype(ml_dtypes.uint4): 4,
    np.dtype(np.int8): 8,
}
_WITH_ZERO_POINTS: Final = np.dtype(ml_dtypes.uint4)
_MIDDLE: Final = {4: 8, 8: 128}

_ELEMENTS: Final = 1 << 18
"""Of a weight, worked on at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight as `MatMulNBits` takes it.

    Attributes:
        values: uint8 (outputs, blocks, bytes of a block).
        scales: float32 (outputs, blocks).
        bits: 4 or 8.
        block_size: Inputs that share a scale.
        zero_points: uint8 (outputs, bytes of their blocks); None where the middle stands for zero.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    block_size: int
    zero_points: NDArray[np.uint8] | None = None

    @property
    def outputs(self) -> int:
        """Of the layer."""
        return int(self.values.shape[0])

    @property
    def inputs(self) -> int:
        """Of the layer."""
        return int(self.values.shape[1]) * self.block_size


def pack_weight(
    integers: NDArray[Any],
    scales: NDArray[Any],
    *,
    output_axis: int,
    block_size: int | None,
    zero_points: NDArray[Any] | None = None,
    threads: int = 1,
) -> PackedWeight:
    """Another layout of the same integers and scales; see the module.

    Args:
        integers: int4, uint4 or int8, two axes.
        scales: float32, as DequantizeLinear takes them.
        output_axis: Of the integers, the axis of the outputs.
        block_size: Inputs that share a scale; None: all, and `scales` is (outputs,).
        zero_points: Of the type of the integers and the shape of `scales`; None: zero.
        threads: How many parts of it are worked on at a time; the result is the same.

    Raises:
        Refused: when the operator does not take it.
    """
    if integers.ndim != 2:
        raise Refused(f"its weight has {integers.ndim} axes, not 2")
    bits = _BITS.get(integers.dtype)
    if bits is None:
        raise Refused(f"its weight is {integers.dtype}, not int4, uint4 or int8")
    if scales.dtype != np.float32:
        raise Refused(f"its scales are {scales.dtype}, not float32")
    is_unsigned = integers.dtype == _WITH_ZERO_POINTS
    if not is_unsigned and zero_points is not None and zero_points.any():
        raise Refused(f"its weight is {integers.dtype} and has zero points")
    rows = np.moveaxis(integers, output_axis, 0)
    outputs, inputs = rows.shape
    size = block_size
    if size is None:
        size = next((each for each in BLOCKS if inputs % each == 0), 0)

    def for_blocks(each: NDArray[Any]) -> NDArray[Any]:
        if block_size is not None:
            return np.moveaxis(each, output_axis, 0)
        return np.repeat(each.reshape(-1, 1), inputs // size if size else 1, axis=1)

    if size < SMALLEST_BLOCK or size & (size - 1) or inputs % size:
        raise Refused(f"its {inputs} inputs are no whole number of blocks of 16, 32, 64, ...")
    values = np.empty((outputs, inputs * bits // 8), np.uint8)

    def pack(part: slice) -> None:
        # In two's complement the middle is added by turning the highest bit over.
        numbers = rows[part].view(np.uint8)
        if bits == 4:
            np.bitwise_xor(_pairs(numbers), 0 if is_unsigned else 0x88, out=values[part])
        else:
            np.bitwise_xor(numbers, 0x80, out=values[part])

    _for_parts(pack, outputs, inputs, threads)
    blocks = inputs // size
    zeros = None
    if is_unsigned:
        given = np.zeros(scales.shape, np.uint8) if zero_points is None else zero_points
        zeros = np.ascontiguousarray(_pairs(for_blocks(given.astype(np.uint8))))
    return PackedWeight(
        values=values.reshape(outputs, blocks, size * bits // 8),
        scales=np.ascontiguousarray(for_blocks(scales).reshape(outputs, blocks), np.float32),
        bits=bits,
        block_size=size,
        zero_points=zeros,
    )


def _for_parts(work: Callable[[slice], object], rows: int, columns: int, threads: int) -> None:
    """Do something for some rows at a time; small parts stay in the cache of a core."""
    step = max(1, _ELEMENTS // max(columns, 1))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))  # a list, so that errors are raised


def _pairs(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each row two numbers to a byte, the first in its lower half; the last may stand alone.

    What is above the lower half of a number does not count.
    """
    low: NDArray[np.uint8] = np.bitwise_and(numbers[:, 0::2], np.uint8(15))
    high = numbers[:, 1::2]
    low[:, : high.shape[1]] |= np.left_shift(high, 4, dtype=np.uint8)
    return low


def _apart(pairs: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """What `_pairs` put together, `count` numbers of each row."""
    both = np.empty((len(pairs), pairs.shape[1], 2), np.uint8)
    np.bitwise_and(pairs, 15, out=both[..., 0])
    np.right_shift(pairs, 4, out=both[..., 1])
    return both.reshape(len(pairs), -1)[:, :count]


def _unpacked_integers(packed: PackedWeight, rows: slice = slice(None)) -> NDArray[np.int8]:
    """What `MatMulNBits` takes the stored numbers for, before zero points: (outputs, inputs)."""
    stored = packed.values[rows]
    stored = stored.reshape(len(stored), -1)
    if packed.bits == 4:
        stored = _apart(stored, packed.inputs)
    middle = _MIDDLE[packed.bits] if packed.zero_points is None else 0
    integers: NDArray[np.int8] = np.subtract(stored, np.uint8(middle)).view(np.int8)
    return integers


def unpack_weight(packed: PackedWeight) -> NDArray[np.float32]:
    """The values that `MatMulNBits` multiplies with, float32 (outputs, inputs)."""
    integers = _unpacked_integers(packed).astype(np.float32)
    if packed.zero_points is not None:
        zeros = _apart(packed.zero_points, packed.scales.shape[1]).astype(np.float32)
        integers -= np.repeat(zeros, packed.block_size, axis=1)
    result: NDArray[np.float32] = integers * np.repeat(packed.scales, packed.block_size, axis=1)
    return result


def require_equal(
    packed: PackedWeight,
    integers: NDArray[Any],
    scales: NDArray[Any],
    *,
    output_axis: int,
    block_size: int | None,
    zero_points: NDArray[Any] | None = None,
    threads: int = 1,
) -> int:
    """Compare what was packed with what DequantizeLinear makes of a weight; how many values.

    A value is `(integer - zero point) * scale` on both sides. So they are the same in every bit where
    each of the three is, which is what is compared.

    Raises:
        StageError: when one differs in one bit.
    """
    rows = np.moveaxis(integers, output_axis, 0)
    count = packed.scales.shape[1]

    def blocks(each: NDArray[Any]) -> NDArray[Any]:
        if block_size is None:
            return np.broadcast_to(each.reshape(-1, 1), (each.size, count))
        return np.moveaxis(each, output_axis, 0)

    zeros = np.zeros(scales.shape, np.uint8) if zero_points is None else zero_points
    kept = np.zeros((packed.outputs, count), np.uint8)
    if packed.zero_points is not None:
        kept = _apart(packed.zero_points, count)
    is_equal = (
        rows.shape == (packed.outputs, packed.inputs)
        and packed.block_size == (block_size or packed.block_size)
        and np.array_equal(packed.scales.view(np.uint32), blocks(scales.view(np.uint32)))
        and np.array_equal(kept, blocks(zeros.astype(np.uint8)))
    )
    differing: list[slice] = []

    def compare(part: slice) -> None:
        if not np.array_equal(_unpacked_integers(packed, part), rows[part].astype(np.int8)):
            differing.append(part)

    if is_equal:
        _for_parts(compare, packed.outputs, packed.inputs, threads)
    if not is_equal or differing:
        raise StageError("a weight is not what it was after it was packed for MatMulNBits")
    return int(rows.size)
