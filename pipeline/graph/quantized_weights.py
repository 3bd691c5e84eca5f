"""Matrices in 8 bits: `value = scale * (integer - zero_point)`, rounded half to even.

Source: ONNX operators MatMulInteger and DequantizeLinear; ranges as `quantize_dynamic` of ONNX
Runtime 1.31.1 has them, whose kernels are made for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

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

    dtype: Literal["int8", "uint8", "float8"]
    bits: Literal[7, 8]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight in 8 bits.

    Attributes:
        values: int8 or uint8, the shape of the weight.
        scale: (channels,), or () when there is one for all; float32 unless asked for.
        zero_point: Of the type of `values` and the shape of `scale`.
    """

    values: NDArray[np.int8 | np.uint8]
    scale: NDArray[np.floating[Any]]
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
    """Quantise a weight (inputs, columns), with one scale a column or one for all of it."""
    return quantize_weight(
        matrix, kind, axis=1 if per_channel else None, scale_dtype=np.dtype(np.float32)
    )


def quantize_weight(
    weight: NDArray[np.floating[Any]],
    kind: WeightType,
    *,
    axis: int | None,
    scale_dtype: np.dtype[np.floating[Any]],
    least_scale: NDArray[np.floating[Any]] | None = None,
) -> QuantizedWeight:
    """Quantise a weight of any shape.

    The error of each value is at most half its scale (and what the scale loses in `scale_dtype`).
    A channel of zeros gets the scale 1.

    Args:
        weight: float32 or float16.
        kind: Of the integers.
        axis: The axis with one scale for each index; None for one scale for all of it.
        scale_dtype: Type of the scales; the weight is quantised with the scales as rounded to it.
        least_scale: No scale is smaller; of shape (channels,), or () for one scale.
    """
    low, high = _RANGES[kind.dtype, kind.bits]
    numbers = weight.astype(np.float32, copy=False)
    others = None if axis is None else tuple(n for n in range(numbers.ndim) if n != axis)
    # Zero must be among the values, so that it is kept exactly.
    least = np.minimum(numbers.min(axis=others, keepdims=True), 0.0)
    most = np.maximum(numbers.max(axis=others, keepdims=True), 0.0)
    if kind.dtype == "int8":
        most = np.maximum(most, -least)
        least = -most
    width = ((most - least) / (high - low)).astype(np.float32)
    width = np.where(width < np.finfo(np.float32).tiny, np.float32(1), width)
    if least_scale is not None:
        width = np.maximum(width, least_scale.reshape(least_scale.shape and width.shape))
    stored = rounded_scale(width, scale_dtype)
    scale = stored.astype(np.float32)
    zero_point = np.clip(np.rint(low - least / scale), low, high)
    if kind.dtype == "int8":
        zero_point = np.zeros_like(zero_point)
    values = np.clip(np.rint(numbers / scale) + zero_point, low, high)
    dtype = np.int8 if kind.dtype == "int8" else np.uint8
    shape = () if axis is None else (-1,)
    return QuantizedWeight(
        values=values.astype(dtype),
        scale=stored.reshape(shape),
        zero_point=zero_point.astype(dtype).reshape(shape),
    )


def rounded_scale(
    scale: NDArray[np.floating[Any]], dtype: np.dtype[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Positive scales in another type; none becomes zero.

    Those in float16 are rounded up: the small ones have few bits, and a scale that is too small
    clips the largest numbers.
    """
    rounded = scale.astype(dtype)
    if dtype == np.float16:
        up = np.nextafter(rounded, dtype.type(np.inf))
        rounded = np.where(rounded.astype(np.float64) < scale, up, rounded)
    return np.maximum(rounded, np.finfo(dtype).smallest_subnormal)


def quantize_rows(table: NDArray[np.float32]) -> QuantizedRows:
    """Quantise a table (rows, size) to symmetric int8 with one scale a row."""
    scale = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    values = np.clip(np.rint(table / scale), -127, 127)
    return QuantizedRows(values=values.astype(np.int8), scale=scale.astype(np.float32))
