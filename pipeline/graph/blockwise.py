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

from pipeline.graph.weight_methods.base import integers_of
from pipeline.graph.weight_methods.catalogue import METHODS
from pipeline.graph.weight_methods.compensation import round_in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Bits
    from pipeline.graph.weight_methods.compensation import Factor

STORED: Final[dict[Bits, np.dtype[Any]]] = {4: np.dtype(ml_dtypes.int4), 8: np.dtype(np.int8)}

_ELEMENTS: Final = 1 << 16
"""That are worked on at a time: memory does not depend on the size of a weight, and caches hold them."""

_STRIP_ELEMENTS: Final = 1 << 19
"""Likewise where weights of many outputs lie side by side: fewer are done before threads wait for one another."""

_OUTPUTS: Final = 512
"""Whose inputs are rounded one by one together: enough for steps to be long, 14 bytes for each number."""


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
    weight: NDArray[Any],
    *,
    axis: int,
    bits: Bits,
    block_size: int | None,
    method: str,
    factor: Factor | None = None,
    threads: int = 1,
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

    Raises:
        ValueError: when the block does not divide the inputs, or a factor is missing or of another
            number of inputs.
    """
    rows = np.moveaxis(weight, axis, 1)
    outputs, inputs = rows.shape
    size = inputs if block_size is None else block_size
    if inputs % size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {size}")
    rule = METHODS[method]
    if rule.is_calibrated and (factor is None or factor.order.size != inputs):
        raise ValueError(f"method {method} needs the moments of {inputs} inputs")
    # Laid out as the weight is, so that nothing is turned around.
    stored = np.empty(weight.shape, STORED[bits])
    steps = np.empty([inputs // size if at == axis else outputs for at in range(2)], weight.dtype)
    values, scale = np.moveaxis(stored, axis, 1), np.moveaxis(steps, axis, 1)

    def quantize(part: slice) -> None:
        blocks = rows[part].astype(np.float32).reshape(-1, inputs // size, size)
        found = rule.find_scales(blocks, bits, weight.dtype)
        scale[part] = found
        if not rule.is_calibrated:
            integers = integers_of(blocks, found, bits).reshape(-1, inputs)
            # By way of int8: from floats straight to int4 takes five times as long.
            values[part] = integers.astype(np.int8).astype(STORED[bits])

    def quantize_strip(blocks_in: slice) -> None:
        strip = weight[blocks_in.start * size : blocks_in.stop * size]
        # Neighbours in memory are inputs of neighbouring outputs, and numpy goes along them.
        blocks = strip.astype(np.float32, copy=False).reshape(-1, size, outputs).transpose(2, 0, 1)
        found = rule.find_scales(blocks, bits, weight.dtype)
        steps[blocks_in] = found.T
        integers = integers_of(blocks, found, bits).transpose(1, 2, 0).reshape(strip.shape)
        stored[blocks_in.start * size : blocks_in.stop * size] = integers.astype(np.int8).astype(
            STORED[bits]
        )

    # Of a sum the last bits hang on the order in which numpy goes; of the largest weight they do not.
    is_in_strips = axis == 0 and weight.flags.c_contiguous and rule.loss is None
    with ThreadPoolExecutor(threads) as pool:  # lists, so that errors are raised
        if is_in_strips and inputs // size >= threads:
            per = max(1, _STRIP_ELEMENTS // (size * outputs))
            count = inputs // size
            strips = [slice(at, min(at + per, count)) for at in range(0, count, per)]
            list(pool.map(quantize_strip, strips))
        else:
            list(pool.map(quantize, parts_of(outputs, inputs)))
    if rule.is_calibrated and factor is not None:
        _compensate(rows, scale, values, bits, factor, threads)
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


def parts_of(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, a bounded number of elements at a time."""
    step = max(1, _ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, start + step)
