"""Distances between a candidate's tensor and the reference's, in float64, added up piece by piece.

`DistanceSums` of two pieces can be added, so a comparison of any number of samples needs the memory
of one. All formulas are those of `pipeline.parity.types.Metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.parity.types import Metrics

Array: TypeAlias = NDArray[Any]

if TYPE_CHECKING:
    Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceSums:
    """What must be known of a piece of data to give its metrics and those of a union.

    Attributes:
        elements: Elements that were compared.
        non_finite: The candidate's elements that are NaN or infinite; when there are any, no
            number below is of use.
        vectors: Vectors (last axis) of two elements or more that were compared.
        cosine_min: Smallest cosine of two vectors.
        cosine_sum: Sum of the cosines.
        abs_max: Largest absolute difference.
        abs_sum: Sum of the absolute differences.
        square_sum: Sum of the squared differences.
        reference_square_sum: Sum of the reference's squares.
        ranked: Vectors whose largest element was looked at.
        agreed: Those of them where it is in the same place.
    """

    elements: int = 0
    non_finite: int = 0
    vectors: int = 0
    cosine_min: float = math.inf
    cosine_sum: float = 0.0
    abs_max: float = 0.0
    abs_sum: float = 0.0
    square_sum: float = 0.0
    reference_square_sum: float = 0.0
    ranked: int = 0
    agreed: int = 0

    def __add__(self, other: DistanceSums) -> DistanceSums:
        """The sums of both pieces together."""
        return DistanceSums(
            elements=self.elements + other.elements,
            non_finite=self.non_finite + other.non_finite,
            vectors=self.vectors + other.vectors,
            cosine_min=min(self.cosine_min, other.cosine_min),
            cosine_sum=self.cosine_sum + other.cosine_sum,
            abs_max=max(self.abs_max, other.abs_max),
            abs_sum=self.abs_sum + other.abs_sum,
            square_sum=self.square_sum + other.square_sum,
            reference_square_sum=self.reference_square_sum + other.reference_square_sum,
            ranked=self.ranked + other.ranked,
            agreed=self.agreed + other.agreed,
        )

    def metrics(self) -> Metrics:
        """The metrics; None for what cannot be computed, and the counts say why."""
        if not self.elements or self.non_finite:
            return Metrics(
                cosine_similarity=None,
                cosine_similarity_mean=None,
                max_abs_diff=None,
                mean_abs_diff=None,
                relative_l2=None,
                sqnr_db=None,
                non_finite=self.non_finite,
                elements=self.elements,
            )
        relative_l2 = self._relative_l2()
        return Metrics(
            cosine_similarity=self.cosine_min if self.vectors else None,
            cosine_similarity_mean=self.cosine_sum / self.vectors if self.vectors else None,
            max_abs_diff=self.abs_max,
            mean_abs_diff=self.abs_sum / self.elements,
            relative_l2=relative_l2,
            sqnr_db=-20.0 * math.log10(relative_l2) if relative_l2 else None,
            top1_agreement=self.agreed / self.ranked if self.ranked else None,
            non_finite=0,
            elements=self.elements,
            rmse=math.sqrt(self.square_sum / self.elements),
            reference_rms=math.sqrt(self.reference_square_sum / self.elements),
        )

    def _relative_l2(self) -> float | None:
        if self.square_sum == 0.0:
            return 0.0
        if self.reference_square_sum == 0.0:
            return None
        return math.sqrt(self.square_sum) / math.sqrt(self.reference_square_sum)


def sum_distances(candidate: Array, reference: Array, *, is_ranked: bool = False) -> DistanceSums:
    """Compare two tensors of one shape.

    Vectors of one element have no angle but their sign, and their largest is always in the same
    place: neither is counted, so that no limit on them holds for nothing.

    Args:
        candidate: Floating point of at most 32 bits, any shape; may hold NaN and infinities.
        reference: The same shape, finite. The squares of its square sums must fit float64, which
            those of float32 values always do.
        is_ranked: Look at the place of the largest element of each vector too.

    Raises:
        ValueError: when the shapes differ (nothing is broadcast) or the reference is not finite.
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"shapes differ: {candidate.shape} and {reference.shape}")
    if not np.isfinite(reference).all():
        raise ValueError("the reference has elements that are NaN or infinite")
    non_finite = int(candidate.size - np.count_nonzero(np.isfinite(candidate)))
    if non_finite or not candidate.size:
        return DistanceSums(elements=candidate.size, non_finite=non_finite)
    width = candidate.shape[-1] if candidate.ndim else 1
    left = candidate.astype(np.float64).reshape(-1, width)
    right = reference.astype(np.float64).reshape(-1, width)
    has_vectors = width > 1
    cosines = cosine_similarities(left, right) if has_vectors else np.empty(0)
    difference = left - right
    distance = np.abs(difference)
    return DistanceSums(
        elements=candidate.size,
        vectors=len(cosines),
        cosine_min=float(cosines.min(initial=math.inf)),
        cosine_sum=float(cosines.sum()),
        abs_max=float(distance.max()),
        abs_sum=float(distance.sum()),
        square_sum=float(np.square(difference).sum()),
        reference_square_sum=float(np.square(right).sum()),
        ranked=len(left) if is_ranked and has_vectors else 0,
        agreed=int(np.sum(left.argmax(axis=1) == right.argmax(axis=1)))
        if is_ranked and has_vectors
        else 0,
    )


def measure(candidate: Array, reference: Array) -> Metrics:
    """The metrics of two tensors of one shape; see `sum_distances`."""
    return sum_distances(candidate, reference).metrics()


def cosine_similarities(left: Floats, right: Floats) -> Floats:
    """Cosine of each pair of rows, in [-1, 1].

    Two zero rows point the same way (1), a zero row and another do not (0). Equal rows give exactly
    1, because both norms go under one root: sqrt(x * x) is x.

    Args:
        left: float64 (vectors, width), finite.
        right: The same shape.

    Returns:
        float64 (vectors,).
    """
    dots = np.einsum("ij,ij->i", left, right)
    lengths = np.sqrt(np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right))
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0.0)
    cosines[both_zero] = 1.0
    clipped: Floats = np.clip(cosines, -1.0, 1.0)
    return clipped
