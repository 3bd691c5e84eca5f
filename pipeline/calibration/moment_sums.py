"""Sums over the rows of one tensor, in parts of rows: `X^T X` and `|X|`.

Rows of several samples are gathered first, because a product of few rows costs little more than to go over
its result. Of `X^T X` only what lies on and above its diagonal is kept, in panels of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_ROWS: Final = 256
"""That are gathered before they are multiplied."""

_PANEL: Final = 256
"""Rows of a panel."""


def bytes_of_sums(inputs: int) -> int:
    """Memory that sums of products take, with the rows that wait and room for one panel."""
    panels = sum((end - start) * (inputs - start) for start, end in _parts(inputs))
    return 4 * (panels + (_ROWS + _PANEL) * inputs)


class MomentSums:
    """Of one tensor.

    Args:
        inputs: Numbers of one row.
        has_products: Whether `X^T X` is needed.
    """

    def __init__(self, inputs: int, *, has_products: bool) -> None:
        self.inputs, self.count = inputs, 0
        self._magnitudes = np.zeros(inputs, np.float64)
        self._panels: list[Floats] = []
        self._waiting, self._held = np.empty((0, inputs), np.float32), 0
        if has_products:
            self._waiting = np.empty((_ROWS, inputs), np.float32)
            self._panels = [
                np.zeros((end - start, inputs - start), np.float32)
                for start, end in _parts(inputs)
            ]

    def add(self, rows: Floats) -> bool:
        """Add rows (rows, inputs); False, and they count for nothing, when one is NaN or infinite."""
        magnitudes = np.abs(rows).sum(axis=0, dtype=np.float64)
        if not np.isfinite(magnitudes).all():
            return False
        self.count += len(rows)
        self._magnitudes += magnitudes
        while self._panels and len(rows):
            taken = rows[: _ROWS - self._held]
            self._waiting[self._held : self._held + len(taken)] = taken
            self._held += len(taken)
            rows = rows[len(taken) :]
            if self._held == _ROWS:
                self._multiply()
        return True

    def magnitudes(self) -> Floats:
        """Mean of `|X|`, float32 (inputs,).

        Raises:
            QuantizationError: when there were no rows.
        """
        self._require_rows()
        return (self._magnitudes / self.count).astype(np.float32)

    def products(self) -> Floats:
        """`X^T X / n`, float32 (inputs, inputs); the sums are gone then.

        Raises:
            QuantizationError: when there were no rows.
        """
        self._require_rows()
        self._multiply()
        self._waiting = self._waiting[:0].copy()
        whole = np.empty((self.inputs, self.inputs), np.float32)
        for start, end in _parts(self.inputs):
            panel = self._panels.pop(0)
            panel /= np.float32(self.count)
            square, rest = panel[:, : end - start], panel[:, end - start :]
            # One half for both, so that it is symmetric to the last bit.
            whole[start:end, start:end] = np.triu(square) + np.triu(square, 1).T
            whole[start:end, end:] = rest
            whole[end:, start:end] = rest.T
        return whole

    def _multiply(self) -> None:
        rows, self._held = self._waiting[: self._held], 0
        if not len(rows):
            return
        room = np.empty(_PANEL * self.inputs, np.float32)
        for (start, end), panel in zip(_parts(self.inputs), self._panels, strict=True):
            product = room[: panel.size].reshape(panel.shape)
            np.matmul(rows[:, start:end].T, rows[:, start:], out=product)
            np.add(panel, product, out=panel)

    def _require_rows(self) -> None:
        if not self.count:
            raise QuantizationError("no calibration sample has a token that is no padding")


def _parts(inputs: int) -> Iterator[tuple[int, int]]:
    for start in range(0, inputs, _PANEL):
        yield start, min(start + _PANEL, inputs)
