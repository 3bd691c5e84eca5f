"""What follows for the choices of a decoder when its logits are off by no more than a noise allows.

The noise is that of `pipeline.parity.tolerances`: RMSE over the root mean square of the logits, which
is the unit here. Imports nothing heavy.
"""

from __future__ import annotations

import math


def largest_error(noise_limit: float, unit: float, vocabulary: int) -> float:
    """How far one logit may be off when the noise of all is within a limit.

    Of V errors with standard deviation s = noise x unit the largest magnitude is expected to be at most
    s sqrt(2 ln 2V) when they are Gaussian (Boucheron, Lugosi and Massart, Concentration Inequalities,
    2013, theorem 2.5, for the 2V numbers +-x).
    """
    return noise_limit * unit * math.sqrt(2.0 * math.log(2.0 * max(1, vocabulary)))


def near_tie(error: float) -> float:
    """Largest margin of two logits that trade places when each may be off by `error`."""
    return 2.0 * error


def kl_limit(error: float) -> float:
    """Largest divergence, nats, of softmaxes whose logits differ by at most `error`.

    KL(p, q) = log E_p[exp d] - E_p[d] for d = logits of q - logits of p, and for d in [-e, e] that is
    at most (2e)^2 / 8 (Hoeffding, Probability Inequalities for Sums of Bounded Random Variables, 1963).
    """
    return error**2 / 2.0


def perplexity_limit(error: float) -> float:
    """Largest ratio of perplexities when logits differ by at most `error`.

    log q(token) moves by at most e for its own logit and by e for the normaliser.
    """
    return math.exp(min(2.0 * error, 700.0))  # what is beyond ends float64
