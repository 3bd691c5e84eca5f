"""What is right of weights whose grid is not that of symmetric integers: zero points, and NF4.

As for the others (see `weight_only_audit`), two things are asked of each block: that every number is the
nearest one to the float weight that its grid has (half a step, but for weights that are cut off), and that
the grid is as fine as its method makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from pipeline.graph import normal_floats
from pipeline.graph.weight_methods.asymmetric import (
    LARGEST_CODE,
    ZERO_POINT_METHODS,
    Grid,
    whole_range,
)
from pipeline.graph.weight_methods.base import squares

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Blocks

NEGLIGIBLE: Final = 1e-3
"""Of a step: errors so small are rounding of the scale, and their ratio says nothing."""


class Judged(Protocol):
    """Some blocks of a weight and what was stored for them."""

    def error(self, start: int) -> tuple[float, str]:
        """Largest distance from the float weight in steps, and where; `start` is the first output."""

    def step(self, start: int) -> tuple[float, str]:
        """How much more coarsely a block is rounded than it needs to be, and where."""


class ZeroPointBlocks:
    """Blocks (outputs, blocks, size) with zero points.

    Args:
        content: Float weight, of its own type.
        values: uint4.
        scale: (outputs, blocks), as stored.
        zero: Likewise.
        method: A key of `ZERO_POINT_METHODS`.
    """

    def __init__(
        self,
        content: NDArray[Any],
        values: NDArray[Any],
        scale: NDArray[Any],
        zero: NDArray[Any],
        method: str,
    ) -> None:
        self._dtype = content.dtype
        self._content = content.astype(np.float32)
        self._values = values.astype(np.float32)
        self._grid = Grid(scale.astype(np.float32), zero.astype(np.float32))
        self._loss = ZERO_POINT_METHODS[method].loss

    def error(self, start: int) -> tuple[float, str]:
        """See `Judged`; where no method cuts weights off, they are not cut off here."""
        with np.errstate(all="ignore"):
            steps = self._content / self._grid.scale[..., None] + self._grid.zero[..., None]
        if self._loss is not None:
            steps = np.clip(steps, 0, LARGEST_CODE)
        return worst(np.abs(steps - self._values), start, "at output {}, block {}, place {}")

    def step(self, start: int) -> tuple[float, str]:
        """See `Judged`: of `rtn` its step over that of the range, else its loss over that of `rtn`."""
        plain = whole_range(self._content, self._dtype)
        steps = plain.scale.astype(np.float32)
        is_used = np.abs(self._content).max(axis=2) > 0
        ratio: NDArray[Any]
        if self._loss is None:
            ratio = self._grid.scale / steps
        else:
            lost = self._content - self._grid.floats(self._values)
            usual = plain.loss(self._content, self._loss)
            ratio = loss_ratio(lost, usual, steps, self._content, self._loss)
        return worst(np.where(is_used, ratio, 0.0), start, "in output {}, block {}")


class NormalFloatBlocks:
    """Blocks (outputs, blocks, size) in NF4.

    Args:
        content: Float weight.
        codes: uint8.
        scale: (outputs, blocks).
        method: A key of `normal_floats.FINDERS`.
    """

    def __init__(
        self, content: NDArray[Any], codes: NDArray[Any], scale: NDArray[Any], method: str
    ) -> None:
        self._content = content.astype(np.float32)
        self._codes = codes.astype(np.int16) & 15
        self._scale = scale.astype(np.float32)
        self._may_clip = method != "rtn"

    def error(self, start: int) -> tuple[float, str]:
        """See `Judged`; a step is that to the next number on the weight's side."""
        numbers = normal_floats.NF4
        with np.errstate(all="ignore"):
            shares = self._content / self._scale[..., None]
        if self._may_clip:
            shares = np.clip(shares, numbers[0], numbers[-1])
        gaps = np.diff(numbers)
        ups = np.append(gaps, gaps[-1])[self._codes]
        downs = np.insert(gaps, 0, gaps[0])[self._codes]
        beyond = shares - numbers[self._codes]
        distance = np.abs(beyond) / np.where(beyond > 0, ups, downs)
        return worst(distance, start, "at output {}, block {}, place {}")

    def step(self, start: int) -> tuple[float, str]:
        """See `Judged`: of `rtn` its scale over the largest weight, else its loss over that of `rtn`."""
        largest = normal_floats.largest_of(self._content)
        is_used = np.abs(self._content).max(axis=2) > 0
        ratio: NDArray[Any]
        if self._may_clip:
            lost = self._content - normal_floats.NF4[self._codes] * self._scale[..., None]
            usual = normal_floats.loss_of(self._content, largest)
            ratio = loss_ratio(lost, usual, largest, self._content, squares)
        else:
            ratio = self._scale / largest
        return worst(np.where(is_used, ratio, 0.0), start, "in output {}, block {}")


def loss_ratio(
    lost: Blocks,
    usual: NDArray[np.float32],
    steps: NDArray[np.float32],
    content: Blocks,
    loss: Callable[[Blocks, Blocks], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """What blocks lose over what `rtn` would, as a root, (outputs, blocks).

    Args:
        lost: Errors of the blocks.
        usual: Loss of `rtn`.
        steps: Of `rtn`, (outputs, blocks).
        content: Float weights.
        loss: Of the method.
    """
    unit = np.broadcast_to(np.float32(NEGLIGIBLE) * steps[..., None], content.shape)
    slack = loss(unit, content)
    with np.errstate(invalid="ignore"):  # of blocks of zeros
        result: NDArray[np.float32] = np.sqrt((loss(lost, content) + slack) / (usual + slack))
    return result


def worst(sizes: NDArray[Any], start: int, where: str) -> tuple[float, str]:
    """The largest number, infinite for NaN, and its place in words."""
    at = int(np.argmax(sizes))  # of NaN, the first one
    place = [int(each) for each in np.unravel_index(at, sizes.shape)]
    place[0] += start
    value = float(sizes.reshape(-1)[at])
    return (value if np.isfinite(value) else np.inf), where.format(*place)
