"""How far inner values of one graph are from those of another, and which of them to look at.

Pure. Two numbers are told of each value, both as RMSE over the root mean square of the right value,
over all samples together. *Noise* is what has come together up to here. *Added* is what the nodes
since the values before it make of their own: the graph's own nodes are given the right values of
those before, so what is wrong then was made here. A fault shows in the noise of everything behind
it, and in what is added at one place alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.hashing import JSON

STANDS_FOR_INFINITY: Final = 1e8
"""Numbers this large are no quantities, such as the fill of an attention mask."""

STILL_HUGE: Final = 1e4
"""What such a number is at least in another type: float16 ends at 65504."""

_ROW: Final = 1024

MOST_ROWS: Final = 400
"""Values that are kept in facts."""


def _dot(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The sum of products of two vectors: of short rows in their type, of those in float64.

    `numpy.dot` would share each of many small sums between threads, which costs ten times as much.
    """
    rows = len(left) // _ROW
    whole = rows * _ROW
    sums = np.einsum(
        "ij,ij->i", left[:whole].reshape(rows, _ROW), right[:whole].reshape(rows, _ROW)
    )
    rest = np.einsum("i,i->", left[whole:], right[whole:])
    return float(sums.sum(dtype=np.float64)) + float(rest)


@dataclass(slots=True)
class NoiseSums:
    """Streaming sums over samples; of numbers that stand for infinity in both nothing is counted.

    Attributes:
        error, reference, candidate, product: Sums of squares, and of products of both.
        faults: Numbers that are finite in one and not in the other, and arrays of another shape.
        count: Arrays.
    """

    error: float = 0.0
    reference: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    faults: int = 0
    count: int = 0

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Count one sample; arrays of any float type."""
        self.count += 1
        if reference.shape != candidate.shape:
            self.faults += 1
            return
        # The difference of two near numbers is exact in float32 already.
        right: NDArray[Any] = reference.astype(np.float32, copy=False).reshape(-1)
        found: NDArray[Any] = candidate.astype(np.float32, copy=False).reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            gap = found - right
            error, squares = _dot(gap, gap), _dot(right, right)
            if not error + squares < STANDS_FOR_INFINITY**2:  # NaN too
                right, found = self._comparable(right, found)
                gap = found - right
                error, squares = _dot(gap, gap), _dot(right, right)
        self.error += error
        self.reference += squares
        self.candidate += _dot(found, found)
        self.product += _dot(right, found)

    def _comparable(
        self, right: NDArray[np.float32], found: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Without what stands for infinity or is NaN in both; counts what is in one alone."""
        is_huge = (np.abs(right) >= STANDS_FOR_INFINITY) & (np.abs(found) >= STILL_HUGE)
        is_same = (is_huge & (np.sign(right) == np.sign(found))) | (
            np.isnan(right) & np.isnan(found)
        )
        is_finite = np.isfinite(right) & np.isfinite(found)
        self.faults += int(np.count_nonzero(~is_same & ~is_finite))
        kept = ~is_same & is_finite
        return right[kept].astype(np.float64), found[kept].astype(np.float64)

    @property
    def noise(self) -> float | None:
        """RMSE over root mean square; None when something is not finite or of another shape."""
        if self.faults or not self.count:
            return None
        if self.error == 0.0:
            return 0.0
        return math.sqrt(self.error / self.reference) if self.reference > 0.0 else None

    @property
    def cosine(self) -> float | None:
        """Of both as one long vector."""
        length = math.sqrt(self.reference) * math.sqrt(self.candidate)
        if self.faults or length == 0.0:
            return None
        return max(-1.0, min(1.0, self.product / length))


@dataclass(slots=True, kw_only=True)
class LayerRow:
    """One inner value.

    Attributes:
        value, operator, node, layer: As in `pipeline.graph.inner_values.InnerValue`.
        total: Against the graph before, both run from the start.
        own: With the right values put in before it.
    """

    value: str
    operator: str
    node: str
    layer: str
    total: NoiseSums = field(default_factory=NoiseSums)
    own: NoiseSums = field(default_factory=NoiseSums)

    @property
    def is_faulty(self) -> bool:
        """Whether its own nodes make something that is no number, or has another shape."""
        return self.own.count > 0 and self.own.noise is None

    def departs(self, limit: float) -> bool:
        """Whether its own nodes add more than this."""
        noise = self.own.noise
        return self.is_faulty or (noise is not None and noise > limit)

    def as_json(self) -> dict[str, JSON]:
        """A row of the facts; `noise` and `added` are null where they are no finite numbers."""
        return {
            "name": self.value,
            "operator": self.operator,
            "node": self.node,
            "layer": self.layer,
            "noise": _short(self.total.noise),
            "added": _short(self.own.noise),
            "cosine": _short(self.total.cosine, 8),
        }


def _short(number: float | None, digits: int = 4) -> float | None:
    return None if number is None else float(f"{number:.{digits}g}")


def by_added(rows: Iterable[LayerRow]) -> list[LayerRow]:
    """The worst first; of equals the one that stands first in the graph."""
    return sorted(
        rows, key=lambda row: -math.inf if row.is_faulty else -(row.own.noise or 0.0)
    )  # fmt: skip


def layer_facts(rows: Sequence[LayerRow], limit: float) -> dict[str, JSON]:
    """`layers`, `worst` and `first` of the facts.

    Args:
        rows: In the order of the graph.
        limit: Largest noise that nodes may add.
    """
    worst = by_added(rows)
    first = next((row for row in rows if row.departs(limit)), None)
    kept = {row.value for row in _chosen(rows, worst)}
    return {
        "limit": limit,
        "layers": [row.as_json() for row in rows if row.value in kept],
        "worst": [row.value for row in worst if row.value in kept and _adds(row)],
        "first": None if first is None else first.value,
    }


def _adds(row: LayerRow) -> bool:
    return row.is_faulty or bool(row.own.noise)


def _chosen(rows: Sequence[LayerRow], worst: Sequence[LayerRow]) -> list[LayerRow]:
    """All, or the worst half of what is kept and of the rest every so many."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    taken = worst[: MOST_ROWS // 2]
    names = {row.value for row in taken}
    rest = [row for row in rows if row.value not in names]
    places = np.linspace(0, len(rest) - 1, MOST_ROWS - len(taken)).round().astype(int)
    return [*taken, *(rest[place] for place in sorted(set(places.tolist())))]
