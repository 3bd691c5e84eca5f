"""Axis lengths as products of an integer and named unknowns, enough to prove reshapes equal.

A fusion may only rely on shapes that hold for every input. Recorded shapes are claims of whoever
wrote the graph, so `pipeline.graph.fusions.shapes` derives them anew in terms of this type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Dim:
    """The length of one axis: `factor` times the product of `symbols`.

    Two equal `Dim` are the same number in every run; two different ones may still be equal.

    Attributes:
        factor: An integer; negative only inside shape tensors, where -1 means "what is left".
        symbols: Names of unknown lengths, sorted, repeated when a square is meant.
    """

    factor: int
    symbols: tuple[str, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether the length is the same in every run."""
        return not self.symbols

    def __mul__(self, other: Dim) -> Dim:
        return Dim(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def __str__(self) -> str:
        parts = [str(self.factor)] if self.factor != 1 or not self.symbols else []
        return "*".join([*parts, *self.symbols])

    def divided_by(self, other: Dim) -> Dim | None:
        """The quotient when the division is exact for every value of the unknowns, else None."""
        if other.factor == 0 or self.factor % other.factor:
            return None
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        return Dim(self.factor // other.factor, tuple(left))


ONE = Dim(1)
"""The length of an axis that only broadcasts."""

Shape = tuple[Dim, ...]

Content = tuple[Dim | None, ...]
"""The elements of an integer scalar or vector; None for one that is not known."""


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of a tensor with these axes; 1 for none."""
    total = ONE
    for dim in dims:
        total *= dim
    return total


def total(lengths: Sequence[Dim]) -> Dim:
    """The sum of lengths; one that is not constant is an unknown, the same in whatever order."""
    constant, others = 0, []
    for length in lengths:
        if length.is_constant:
            constant += length.factor
        else:
            others.append(str(length))
    if not others:
        return Dim(constant)
    if len(others) == 1 and constant == 0:
        return next(each for each in lengths if not each.is_constant)
    parts = sorted(others) + ([str(constant)] if constant else [])
    return Dim(1, (f"({' + '.join(parts)})",))


def minimum(length: Dim, bound: int) -> Dim:
    """`min(length, bound)`, as an unknown of its own unless it is known."""
    if length.is_constant:
        return Dim(min(length.factor, bound))
    return Dim(1, (f"min({length}|{bound})",))


def broadcast_dim(left: Dim, right: Dim) -> Dim | None:
    """The length that NumPy broadcasting of two axes gives, or None when it is not known.

    A run in which the two do not broadcast is one in which the graph has no result, so of a
    constant > 1 and an unknown the constant wins. `min(s, n)` against `s` is `s` when n > 1: where
    `s > n` they would not broadcast.
    """
    if right in {left, ONE}:
        return left
    if left == ONE:
        return right
    for one, other in ((left, right), (right, left)):
        if one.is_constant and one.factor > 1:
            return one
        if _is_minimum_of(one, other):
            return other
    return None


def _is_minimum_of(dim: Dim, length: Dim) -> bool:
    if dim.factor != 1 or len(dim.symbols) != 1:
        return False
    head, _, bound = dim.symbols[0].rpartition("|")
    return head == f"min({length}" and int(bound.rstrip(")")) > 1


def broadcast(left: Shape, right: Shape) -> tuple[Dim | None, ...]:
    """NumPy broadcasting of two shapes; None for an axis whose length is not known."""
    rank = max(len(left), len(right))
    padded_left = (ONE,) * (rank - len(left)) + left
    padded_right = (ONE,) * (rank - len(right)) + right
    return tuple(broadcast_dim(a, b) for a, b in zip(padded_left, padded_right, strict=True))
