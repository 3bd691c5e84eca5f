"""95 % confidence intervals of paired differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Floats: TypeAlias = NDArray[np.float64]

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

RESAMPLES = 1000


def newcombe_interval(both: int, lost: int, gained: int, neither: int) -> tuple[float, float]:
    """Interval of the drop in the share of right answers, for paired answers.

    Method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998): Wilson intervals of the two
    shares, squared and added, with the correlation of the pairs. Right for few answers too.

    Args:
        both: Answers that both have right.
        lost: Answers that only the checkpoint has right.
        gained: Answers that only the candidate has right.
        neither: Answers that neither has right.
    """
    total = both + lost + gained + neither
    reference, candidate = (both + lost) / total, (both + gained) / total
    reference_low, reference_high = _wilson(both + lost, total)
    candidate_low, candidate_high = _wilson(both + gained, total)
    phi = _correlation(both, lost, gained, neither)
    drop = reference - candidate
    below, above = reference - reference_low, candidate_high - candidate
    low = drop - math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = candidate - candidate_low, reference_high - reference
    high = drop + math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    return max(-1.0, low), min(1.0, high)


def _wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share (Journal of the American Statistical Association 22, 1927)."""
    share = right / total
    centre = share + Z**2 / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    scale = 1 + Z**2 / total
    return (centre - half) / scale, (centre + half) / scale


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if not margins:
        return 0.0
    product = float(both * neither - lost * gained)
    if product > 0:  # Newcombe's correction for continuity, of the numerator
        product = max(0.0, product - (both + lost + gained + neither) / 2)
    return product / math.sqrt(margins)


def bootstrap_interval(
    samples: int, drop_of: Callable[[NDArray[Any]], Floats], *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Interval of a drop, samples drawn anew with their answers (a paired bootstrap).

    Answers of one sample hang together, such as the tokens of one text, so whole samples are drawn.
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentiles, from a fixed seed.

    Args:
        samples: How many there are.
        drop_of: How often each sample was drawn, int64 (resamples, samples) -> the drop of each
            draw, float64 (resamples,).
        resamples: How many draws.
    """
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    drops = drop_of(drawn)
    low, high = np.quantile(drops[np.isfinite(drops)], [0.025, 0.975])
    return float(low), float(high)
