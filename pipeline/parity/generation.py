"""How far a decoder is from what it should be: logits position by position, and what is chosen of them.

All functions take logits as float32 or float64 (positions, vocabulary) and compute in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.parity.quality.intervals import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]

FIRST = 5
"""Tokens of the `top5` agreement."""


def root_mean_square(arrays: Sequence[Array]) -> float:
    """Of all elements together; 0 when there are none."""
    elements = sum(array.size for array in arrays)
    squares = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return math.sqrt(squares / elements) if elements else 0.0


def noise(candidate: Array, expected: Array, unit: float) -> float:
    """RMSE over `unit`; infinite when the candidate is not finite or has another shape.

    The unit of `pipeline.parity.tolerances`: of a text, over the root mean square of all texts.
    """
    if candidate.shape != expected.shape or not np.isfinite(candidate).all():
        return math.inf
    if not expected.size:
        return 0.0
    error = root_mean_square([candidate.astype(np.float64) - expected.astype(np.float64)])
    return error / unit if unit else error


def worst_position(candidate: Array, expected: Array) -> int:
    """The position with the largest squared error; of arrays of one shape."""
    error = np.square(candidate.astype(np.float64) - expected.astype(np.float64)).sum(axis=-1)
    return int(np.nan_to_num(error, nan=np.inf).argmax())


def log_shares(logits: Array) -> Floats:
    """Logarithm of the softmax of each row: x - log sum exp x, with the largest taken out first."""
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Two models on one text.

    Attributes:
        kl: Kullback-Leibler divergence of each position, nats: sum p (log p - log q), with p of the
            reference (Kullback and Leibler, On Information and Sufficiency, 1951).
        top1: Whether the likeliest token is the same, for each position.
        top5: Share of the reference's five likeliest tokens that are among the candidate's five.
        margins: How much larger the reference finds its own likeliest token than the candidate's,
            in logits; 0 where they are the same.
        nll: -log p of each next token of the text by the reference, nats (positions - 1).
        candidate_nll: The same by the candidate.
    """

    kl: Floats
    top1: NDArray[np.bool_]
    top5: Floats
    margins: Floats
    nll: Floats
    candidate_nll: Floats


def compare_logits(candidate: Array, reference: Array, tokens: Array) -> Divergence:
    """Compare logits of one text.

    Args:
        candidate: Logits, finite.
        reference: Logits of the same shape, finite.
        tokens: int64 (positions,): the text. Position i is judged by token i + 1.
    """
    p, q = log_shares(reference), log_shares(candidate)
    mine, theirs = candidate.argmax(axis=-1), reference.argmax(axis=-1)
    rows = np.arange(len(reference))
    count = min(FIRST, reference.shape[-1])
    sets = [
        np.argpartition(-each, count - 1, axis=-1)[:, :count] for each in (reference, candidate)
    ]
    shared = (sets[0][:, :, None] == sets[1][:, None, :]).any(axis=2).mean(axis=1)
    following = tokens[1:]
    exact = reference.astype(np.float64)
    return Divergence(
        kl=np.maximum(0.0, (np.exp(p) * (p - q)).sum(axis=-1)),
        top1=mine == theirs,
        top5=shared,
        margins=exact[rows, theirs] - exact[rows, mine],
        nll=-p[rows[:-1], following],
        candidate_nll=-q[rows[:-1], following],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """exp of the mean negative log-likelihood of tokens, given those before (Jelinek et al., 1977).

    Attributes:
        reference: Of the checkpoint.
        candidate: Of the graph.
        ratio: Candidate over reference: exp of the mean difference, token by token.
        low, high: 95 % interval of the ratio, texts drawn anew with all their tokens; of a single text its
            tokens are drawn, which hang together, so that it is rather too narrow.
        tokens: That were counted.
    """

    reference: float
    candidate: float
    ratio: float
    low: float
    high: float
    tokens: int


def perplexity(texts: Sequence[Divergence]) -> Perplexity | None:
    """Of both models on the same texts, paired; None when no text has two tokens."""
    texts = [text for text in texts if text.nll.size]
    if not texts:
        return None
    counts = np.array([text.nll.size for text in texts], np.float64)
    before = np.array([text.nll.sum() for text in texts])
    after = np.array([text.candidate_nll.sum() for text in texts])
    if len(texts) == 1:  # drawn anew it would be itself, and look certain
        before, after = texts[0].nll, texts[0].candidate_nll
        counts = np.ones(before.size)
    low, high = bootstrap_interval(
        len(counts), lambda drawn: drawn @ (after - before) / (drawn @ counts)
    )
    total = counts.sum()
    return Perplexity(
        reference=_exp(before.sum() / total),
        candidate=_exp(after.sum() / total),
        ratio=_exp((after - before).sum() / total),
        low=_exp(low),
        high=_exp(high),
        tokens=int(total),
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # what is beyond ends float64
