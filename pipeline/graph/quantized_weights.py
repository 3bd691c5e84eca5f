"""Matrices in 8 bits: `value = scale * (integer - zero_point)`, rounded half to even.

With float8 there are floats in place of the integers, and the zero point is zero.

Source: ONNX operators MatMulInteger and DequantizeLinear; ranges as `quantize_dynamic` of ONNX
Runtime 1.31.1 has them, whose kernels are made for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import ml_dtypes
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

FLOAT8: Final = np.dtype(ml_dtypes.float8_e4m3fn)
"""Four bits of exponent, three of mantissa, no infinity (Micikevicius et al., "FP8 Formats for Deep
Learning", 2022; ONNX operator QuantizeLinear)."""

FLOAT8_MAX: Final = 448.0
"""Its largest number; what is quantised is cut there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightType:
    """How weights are stored.

    Attributes:
        dtype: `int8` has its zero at 0; `uint8` has it where the values need it; `float8` is
            float8_e4m3fn.
        bits: 7 leaves the highest bit unused, so that no x86 CPU saturates; 8 for float8.
    """

    dtype: Literal["int8", "uint8", "float8"]
    bits: Literal[7, 8]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight in 8 bits.

    Attributes:
        values: int8, uint8 or float8_e4m3fn, the shape of the weight.
        scale: (channels,), or () when there is one for all; float32 unless asked for.
        zero_point: Of the type of `values` and the shape of `scale`.
    """

    values: NDArray[Any]
    scale: NDArray[np.floating[Any]]
    zero_point: NDArray[Any]


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

    The error of each value is at most half its scale (and what the scale loses in `scale_dtype`);
    in float8 at most a 16th of the value, or 2^-10 scales where that is more. A channel of zeros
    gets the scale 1.

    Args:
        weight: float32, float16 or bfloat16.
        kind: Of the integers.
        axis: The axis with one scale for each index; None for one scale for all of it.
        scale_dtype: Type of the scales; the weight is quantised with the scales as rounded to it.
        least_scale: No scale is smaller; of shape (channels,), or () for one scale.
    """
    if kind.dtype == "float8":
        return _quantize_to_float8(weight, axis, scale_dtype)
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


def _quantize_to_float8(
    weight: NDArray[np.floating[Any]], axis: int | None, scale_dtype: np.dtype[np.floating[Any]]
) -> QuantizedWeight:
    """As `quantize_weight`: the largest number of a channel becomes 448."""
    numbers = weight.astype(np.float32, copy=False)
    others = None if axis is None else tuple(n for n in range(numbers.ndim) if n != axis)
    width = (np.abs(numbers).max(axis=others, keepdims=True) / FLOAT8_MAX).astype(np.float32)
    width = np.where(width < np.finfo(np.float32).tiny, np.float32(1), width)
    stored = rounded_scale(width, scale_dtype)
    ratios = (numbers / stored.astype(np.float32)).astype(np.float32)
    shape = () if axis is None else (-1,)
    return QuantizedWeight(
        values=to_float8(ratios),
        scale=stored.reshape(shape),
        zero_point=np.zeros(stored.shape, dtype=FLOAT8).reshape(shape),
    )


def to_float8(numbers: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """float8_e4m3fn, rounded to nearest, halves to even, and cut at 448."""
    kept: NDArray[Any] = np.clip(numbers, -FLOAT8_MAX, FLOAT8_MAX)
    return kept.astype(FLOAT8)


def rounded_scale(
    scale: NDArray[np.floating[Any]], dtype: np.dtype[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Positive scales in another type; none becomes zero.

    Those in 16 bits are rounded up: they have few bits, the small ones of float16 fewer still, and
    a scale that is too small clips the largest numbers.
    """
    rounded = scale.astype(dtype)
    if dtype != np.float32:
        up = np.nextafter(rounded, dtype.type(np.inf))
        rounded = np.where(rounded.astype(np.float64) < scale, up, rounded)
    positive: NDArray[np.floating[Any]] = np.maximum(
        rounded, ml_dtypes.finfo(dtype).smallest_subnormal
    )
    return positive


def quantize_rows(table: NDArray[np.float32]) -> QuantizedRows:
    """Quantise a table (rows, size) to symmetric int8 with one scale a row."""
    scale = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    values = np.clip(np.rint(table / scale), -127, 127)
    return QuantizedRows(values=values.astype(np.int8), scale=scale.astype(np.float32))
