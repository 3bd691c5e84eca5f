"""Matrices in 8 bits: `value = scale * (integer - zero_point)`, rounded half to even.

Source: ONNX operators MatMulInteger and DequantizeLinear; ranges as `quantize_dynamic` of ONNX
Runtime 1.31.1 has them, whose kernels are made for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RANGES: Final = {
    ("int8", 8): (-127, 127),
    ("int8", 7): (-64, 64),
    ("uint8", 8): (0, 255),
    ("uint8", 7): (0, 127),
}
"""(type, bits) -> lowest and highest integer. int8 is symmetric: -128 is not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightType:
    """How weights are stored.

    Attributes:
        dtype: `int8` has its zero at 0; `uint8` has it where the values need it.
        bits: 7 leaves the highest bit unused, so that no x86 CPU saturates.
    """

    dtype: Literal["int8", "uint8"]
    bits: Literal[7, 8]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A matrix in 8 bits.

    Attributes:
        values: int8 or uint8, the shape of the matrix.
        scale: float32; (columns,), or () when there is one for all.
        zero_point: Of the type of `values` and the shape of `scale`.
    """

    values: NDArray[np.int8 | np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8 | np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRows:
    """An embedding table in 8 bits.

    Attributes:
        values: int8 (rows, size).
        scale: float32 (rows, 1).
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def quantize_columns(
    matrix: NDArray[np.float32], kind: WeightType, *, per_channel: bool
) -> QuantizedWeight:
    """Quantise a weight (inputs, columns), with one scale a column or one for all of it.

    The error of each value is at most half its scale. A column of zeros gets the scale 1.
    """
    low, high = _RANGES[kind.dtype, kind.bits]
    axis = 0 if per_channel else None
    # Zero must be among the values, so that it is kept exactly.
    least = np.minimum(matrix.min(axis=axis), 0.0)
    most = np.maximum(matrix.max(axis=axis), 0.0)
    if kind.dtype == "int8":
        most = np.maximum(most, -least)
        least = -most
    scale = ((most - least) / (high - low)).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    zero_point = np.rint(low - least / scale)
    if kind.dtype == "int8":
        zero_point = np.zeros_like(zero_point)
    values = np.clip(np.rint(matrix / scale) + zero_point, low, high)
    dtype = np.int8 if kind.dtype == "int8" else np.uint8
    return QuantizedWeight(
        values=values.astype(dtype),
        scale=scale.astype(np.float32),
        zero_point=zero_point.astype(dtype),
    )


def quantize_rows(table: NDArray[np.float32]) -> QuantizedRows:
    """Quantise a table (rows, size) to symmetric int8 with one scale a row."""
    scale = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    values = np.clip(np.rint(table / scale), -127, 127)
    return QuantizedRows(values=values.astype(np.int8), scale=scale.astype(np.float32))
