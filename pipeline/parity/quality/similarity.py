"""What becomes of similarities: do embeddings still find the same neighbours?

No label is needed: the checkpoint's own similarities are the truth, so its score is 1 by definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.parity.quality.intervals import bootstrap_interval
from pipeline.parity.types import Quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.sample_set import Label

Array: TypeAlias = NDArray[Any]

MOST_SAMPLES = 1000
"""Samples whose similarities are looked at: every pair of them."""
FEWEST_OTHERS = 2
"""Of each sample, besides the neighbours that are asked for: fewer say nothing."""


class Similarities:
    """Similarities of all pairs of samples, by candidate and checkpoint; shared by its figures.

    Args:
        output: Which output is the embedding. (width,) is taken as it is, the vectors of anything
            larger are averaged.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._ours: list[Array] = []
        self._theirs: list[Array] = []
        self._similarities: tuple[Array, Array] | None = None

    def add(self, candidate: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
        """Keep one sample's embeddings, float64 (width,)."""
        if self._output in candidate and len(self._ours) < MOST_SAMPLES:
            self._ours.append(_embedding(candidate[self._output]))
            self._theirs.append(_embedding(reference[self._output]))

    def __len__(self) -> int:
        return len(self._ours)

    def matrices(self) -> tuple[Array, Array]:
        """Cosines of all pairs, float64 (samples, samples), -inf for a sample with itself."""
        if self._similarities is None:
            ours, theirs = (_cosines(np.stack(part)) for part in (self._ours, self._theirs))
            self._similarities = (ours, theirs)
        return self._similarities


def _embedding(output: Array) -> Array:
    vectors = np.moveaxis(output, 0, -1) if output.ndim == 3 else output
    mean: Array = vectors.astype(np.float64).reshape(-1, vectors.shape[-1]).mean(axis=0)
    return mean


def _cosines(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    cosines: Array = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines


class NeighbourRecall:
    """Share of each sample's nearest neighbours that are still among its nearest ones.

    Args:
        metric: What the figure is called.
        similarities: Of all pairs.
        neighbours: How many are asked for.
    """

    def __init__(self, metric: str, similarities: Similarities, neighbours: int) -> None:
        self._metric = metric
        self._similarities = similarities
        self._neighbours = neighbours

    def add(
        self, label: Label | None, candidate: Mapping[str, Array], reference: Mapping[str, Array]
    ) -> None:
        """Nothing of its own: the similarities are kept once for all figures."""

    def result(self) -> Quality | None:
        """The figure; None when there are too few samples for a choice."""
        samples, wanted = len(self._similarities), self._neighbours
        if samples - 1 < wanted + FEWEST_OTHERS:
            return None
        ours, theirs = (
            np.argsort(-part, axis=1, kind="stable")[:, :wanted]
            for part in self._similarities.matrices()
        )
        shares = np.array(
            [len(np.intersect1d(a, b)) / wanted for a, b in zip(ours, theirs, strict=True)]
        )
        drops = 1.0 - shares
        low, high = bootstrap_interval(samples, lambda drawn: drawn @ drops / samples)
        return _of_similarity(self._metric, samples, shares.mean(), low, high, drops)


class RankCorrelation:
    """Spearman's rank correlation of the similarities of all pairs, with the checkpoint's.

    The interval is over samples: each one's share in the correlation is that of its own row.
    """

    def __init__(self, metric: str, similarities: Similarities) -> None:
        self._metric = metric
        self._similarities = similarities

    def add(
        self, label: Label | None, candidate: Mapping[str, Array], reference: Mapping[str, Array]
    ) -> None:
        """Keep the embeddings."""
        del label
        self._similarities.add(candidate, reference)

    def result(self) -> Quality | None:
        """The figure; None with fewer than four samples."""
        samples = len(self._similarities)
        if samples < 2 + FEWEST_OTHERS:
            return None
        ours, theirs = self._similarities.matrices()
        upper = np.triu_indices(samples, k=1)
        score = _correlation(midranks(ours[upper]), midranks(theirs[upper]))
        off = ~np.eye(samples, dtype=bool)
        rows = [
            _correlation(midranks(ours[i][off[i]]), midranks(theirs[i][off[i]]))
            for i in range(samples)
        ]
        drops = 1.0 - np.array(rows)
        # Rows say how much samples differ; the drop of all pairs together stands in the middle.
        shift = (1.0 - score) - drops.mean()
        low, high = bootstrap_interval(samples, lambda drawn: drawn @ drops / samples)
        return _of_similarity(
            self._metric, samples, score, max(0.0, low + shift), high + shift, drops
        )


def midranks(values: Array) -> Array:
    """Rank of each value, from 1; equal values share the mean of their ranks.

    Kendall (1945), The treatment of ties in ranking problems; `scipy.stats.rankdata`, which takes
    0.7 s to import in every process that compares a graph.

    Args:
        values: (values,).

    Returns:
        float64 (values,); all NaN when one of them is.
    """
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[place]
    return ranks


def _correlation(left: Array, right: Array) -> float:
    """Pearson's correlation of ranks: Spearman's; 1 when both are constant, 0 when one is."""
    left, right = left - left.mean(), right - right.mean()
    lengths = float(np.sqrt((left @ left) * (right @ right)))
    if not lengths:
        return float(not left.any() and not right.any())
    return float(np.clip(left @ right / lengths, -1.0, 1.0))


def _of_similarity(
    metric: str, samples: int, score: float, low: float, high: float, drops: Array
) -> Quality:
    return Quality(
        metric=metric,
        samples=samples,
        answers=samples,
        score=float(score),
        reference_score=1.0,
        drop=float(1.0 - score),
        drop_low=low,
        drop_high=high,
        gained=0,
        lost=int(np.sum(drops > 0)),
    )
