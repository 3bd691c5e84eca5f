"""Numbers of a quantised graph beside those they stand for: distances in steps, and grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from pipeline.graph.quantized_weights import FLOAT8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.graph.qdq_placements import EightBits
    from pipeline.graph.unquantized import StoredConstant


LIMITS: Final[dict[tuple[str, int], tuple[int, int]]] = {
    ("int8", 8): (-127, 127),
    ("int8", 7): (-64, 64),
    ("uint8", 8): (0, 255),
    ("uint8", 7): (0, 127),
}
"""(type, bits) -> lowest and highest integer that a weight may have."""


_BLOCK: Final = 1 << 20
"""Elements of a weight that are compared at a time, so that memory does not depend on its size."""

Distances: TypeAlias = "Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]"


def differing(left: ir.Value, right: ir.Value) -> int:
    """How many elements differ in a bit; all of them when types or shapes do."""
    assert left.const_value is not None
    assert right.const_value is not None
    ours, theirs = left.const_value.numpy(), right.const_value.numpy()
    if ours is theirs:
        return 0
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return max(ours.size, theirs.size, 1)
    size = ours.dtype.itemsize
    left_bits, right_bits = (
        np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (ours, theirs)
    )
    if np.array_equal(left_bits, right_bits):
        return 0
    return int((left_bits != right_bits).reshape(-1, size).any(axis=1).sum())


def attributes_of(node: ir.Node) -> dict[str, str]:
    """Attributes in a form that can be compared; graphs by their text."""
    return {name: str(attribute.value) for name, attribute in node.attributes.items()}


def short_name(dtype: np.dtype[Any]) -> str:
    """As recipes and placements have it."""
    return "float8" if dtype == FLOAT8 else dtype.name


def kind_of(zero_point: NDArray[Any] | None) -> EightBits:
    """The type of a quantiser, which its zero point has."""
    if zero_point is None or zero_point.dtype == np.uint8:
        return "uint8"
    return "float8" if zero_point.dtype == FLOAT8 else "int8"


def blocks_of(shape: tuple[int, ...]) -> Iterator[slice]:
    """Parts of the first axis, each with a bounded number of elements."""
    row = int(np.prod(shape[1:], dtype=np.int64)) if shape else 1
    rows = max(1, _BLOCK // max(row, 1))
    for start in range(0, shape[0] if shape else 0, rows):
        yield slice(start, start + rows)


def grid_faults(
    stored: StoredConstant, *, is_symmetric: bool, has_signs: bool = False
) -> Iterator[str]:
    """What is wrong with the zero points and scales of a weight, whatever its type.

    Args:
        stored: The weight.
        is_symmetric: Whether zero points have to be 0.
        has_signs: Whether scales may be negative.
    """
    zero = stored.zero_point
    if is_symmetric and zero is not None and zero.astype(np.float32).any():
        yield "has a zero point that is not 0"
    scale = stored.scale.astype(np.float32)
    if has_signs:
        scale = np.abs(scale)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        wanted = "numbers other than 0" if has_signs else "positive numbers"
        yield f"has scales that are not {wanted}"


def distances(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    """How many integers lie between numbers, which are written over."""
    wanted -= found
    return np.abs(wanted, out=wanted)


def largest_error(
    stored: StoredConstant, content: NDArray[Any], distances: Distances
) -> tuple[float, tuple[int, ...]]:
    """The largest distance of a stored number from the float one, and where.

    Args:
        stored: The weight in 8 bits.
        content: The float one.
        distances: Of `weight / scale` and `number - zero point`, in steps.

    Returns:
        Infinite when shapes differ, or a distance is no number.
    """
    if stored.values.shape != content.shape:
        return np.inf, ()
    try:
        scale = np.broadcast_to(stored.spread(stored.scale).astype(np.float32), content.shape)
        zero: NDArray[np.float32] = np.zeros((), np.float32)
        if stored.zero_point is not None:
            zero = stored.spread(stored.zero_point).astype(np.float32)
        zeros = np.broadcast_to(zero, content.shape)
    except ValueError:
        return np.inf, ()
    worst, where = -1.0, (0,) * content.ndim
    for part in blocks_of(content.shape):
        with np.errstate(all="ignore"):
            wanted = content[part].astype(np.float32) / scale[part]
            steps = distances(wanted, stored.values[part].astype(np.float32) - zeros[part])
        at = int(np.argmax(steps))  # of NaN, the first one
        value = float(steps.reshape(-1)[at])
        place = np.unravel_index(at, steps.shape)
        if not value <= worst:
            worst = value
            where = (int(place[0]) + part.start, *(int(each) for each in place[1:]))
        if not np.isfinite(value):
            return np.inf, where
    return worst, where


def step_ratio(
    stored: StoredConstant,
    content: NDArray[Any],
    axis: int | None,
    bits: Literal[7, 8],
    least: NDArray[Any] | None,
) -> tuple[float, int]:
    """Largest step over the smallest that reaches all weights of its channel, and which channel.

    Channels of zeros may have any step, and those whose bias needs larger ones may have these.
    """
    dtype = stored.values.dtype.name
    if (dtype, bits) not in LIMITS or stored.values.shape != content.shape:
        return np.inf, 0
    low, high = LIMITS[dtype, bits]
    others = None if axis is None else tuple(n for n in range(content.ndim) if n != axis)
    bottom = np.minimum(content.min(axis=others), 0).astype(np.float64)
    top = np.maximum(content.max(axis=others), 0).astype(np.float64)
    width = 2 * np.maximum(-bottom, top) if dtype == "int8" else top - bottom
    needed = np.atleast_1d(width / (high - low))
    if least is not None:
        wanted = least if axis is not None else least.max()
        needed = np.maximum(needed, wanted)
    if stored.scale.dtype == np.float16:
        # Rounded up to float16, whose smallest steps are 2^-24.
        needed = np.maximum(needed * (1 + 2.0**-10), needed + 2.0**-24)
    scales = stored.scale.astype(np.float64).reshape(-1)
    if scales.size not in {1, needed.size}:
        return np.inf, 0
    used = needed > np.finfo(np.float32).tiny
    ratios = np.where(used, scales / np.where(used, needed, 1.0), 0.0)
    worst = int(np.argmax(ratios))
    return float(ratios[worst]), worst


def table_faults(stored: StoredConstant, content: NDArray[Any]) -> Iterator[str]:
    """What is wrong with the form of an embedding table in 8 bits, in words."""
    if stored.values.dtype != np.int8:
        yield f"is {stored.values.dtype}, not int8"
    if stored.scale.size != content.shape[0]:
        yield f"has {stored.scale.size} scales, not {content.shape[0]}"
    if int(stored.values.min(initial=0)) < -127:
        yield "has integers below -127"
    yield from grid_faults(stored, is_symmetric=False)
