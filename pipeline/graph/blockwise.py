"""Matrices in 4 or 8 bits, symmetric around zero: `value = scale * integer`, rounded half to even.

One scale serves a *block* of consecutive weights along the input of the layer, or all of them.
Source: DequantizeLinear of ONNX opset 21, with `block_size` and `axis`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.graph.block_views import as_blocks, for_parts
from pipeline.graph.weight_methods.base import integers_of, signs_of
from pipeline.graph.weight_methods.catalogue import METHODS
from pipeline.graph.weight_methods.compensation import round_in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.block_views import Part
    from pipeline.graph.weight_methods.base import Bits
    from pipeline.graph.weight_methods.compensation import Factor

STORED: Final[dict[Bits, np.dtype[Any]]] = {4: np.dtype(ml_dtypes.int4), 8: np.dtype(np.int8)}

_OUTPUTS: Final = 512
"""Whose inputs are rounded one by one together: enough for steps to be long, 14 bytes for each number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockQuantized:
    """A weight in few bits.

    Attributes:
        values: int4 or int8, the shape of the weight.
        scale: Of the weight's own type; the shape of the weight with the number of blocks in
            place of the inputs, or (outputs,) when there is one scale for each output. Negative ones
            only where that was asked for.
    """

    values: NDArray[Any]
    scale: NDArray[Any]


def quantize_blocks(  # noqa: PLR0913 - one parameter a choice
    weight: NDArray[Any],
    *,
    axis: int,
    bits: Bits,
    block_size: int | None,
    method: str,
    factor: Factor | None = None,
    threads: int = 1,
    has_signs: bool = False,
) -> BlockQuantized:
    """Quantise a matrix.

    Args:
        weight: float32, float16 or bfloat16, two axes.
        axis: The one along which the inputs of the layer lie.
        bits: 4 or 8.
        block_size: How many inputs share a scale, a divisor of their number; None: all.
        method: Of `pipeline.graph.weight_methods.catalogue`.
        factor: Of what goes into the layer, for a calibrated method.
        threads: How many parts of it are worked on at a time; the result is the same.
        has_signs: Whether scales may be negative, see `pipeline.graph.weight_methods.base`.

    Raises:
        ValueError: when the block does not divide the inputs, or a factor is missing or of another
            number of inputs.
    """
    inputs, outputs = weight.shape[axis], weight.shape[1 - axis]
    size = inputs if block_size is None else block_size
    if inputs % size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {size}")
    rule = METHODS[method]
    if rule.is_calibrated and (factor is None or factor.order.size != inputs):
        raise ValueError(f"method {method} needs the moments of {inputs} inputs")
    # Laid out as the weight is, so that nothing is turned around.
    stored = np.empty(weight.shape, STORED[bits])
    steps = np.empty([inputs // size if at == axis else outputs for at in range(2)], weight.dtype)
    values, scale = as_blocks(stored, axis, size), np.moveaxis(steps, axis, 1)

    def quantize(part: Part, blocks: NDArray[np.float32]) -> None:
        if has_signs:
            signs = signs_of(blocks)
            found = rule.find_scales(blocks * signs[..., None], bits, weight.dtype)
            found = found * signs.astype(weight.dtype)
        else:
            found = rule.find_scales(blocks, bits, weight.dtype)
        scale[part] = found
        if not rule.is_calibrated:
            # By way of int8: from floats straight to int4 takes five times as long.
            integers = integers_of(blocks, found, bits).astype(np.int8)
            values[part] = integers.astype(STORED[bits])

    for_parts(quantize, weight, axis=axis, size=size, threads=threads)
    if rule.is_calibrated and factor is not None:
        rows, integers = np.moveaxis(weight, axis, 1), np.moveaxis(stored, axis, 1)
        _compensate(rows, scale, integers, bits, factor, threads)
    return BlockQuantized(values=stored, scale=steps.reshape(-1) if block_size is None else steps)


def _compensate(
    rows: NDArray[Any],
    scale: NDArray[Any],
    values: NDArray[Any],
    bits: Bits,
    factor: Factor,
    threads: int,
) -> None:
    """Write the integers of a calibrated method, (outputs, inputs)."""

    def compensate(start: int) -> None:
        part = slice(start, start + _OUTPUTS)
        values[part] = round_in_order(rows[part], scale[part], bits, factor).astype(STORED[bits])

    # Outputs are shared out here. Threads of BLAS besides would wait for each other in a loop, which took
    # three times the work of one, and the last bits of a sum hang on their number.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(compensate, range(0, len(rows), _OUTPUTS)))
