"""Perplexity of a candidate over the checkpoint's, with an interval that says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.parity.generation import Divergence, compare_logits, perplexity


def _text(seed: int, length: int = 40) -> Divergence:
    generator = np.random.default_rng(seed)
    exact = generator.normal(size=(length, 17)).astype(np.float32)
    near = exact + generator.normal(size=exact.shape).astype(np.float32) / 10
    return compare_logits(near, exact, generator.integers(0, 17, length))


def test_the_interval_is_around_the_ratio_and_shrinks_with_texts() -> None:
    few, many = (perplexity([_text(n) for n in range(count)]) for count in (4, 64))
    assert few is not None
    assert many is not None
    for found in (few, many):
        assert found.low < found.ratio < found.high
        assert found.ratio == pytest.approx(found.candidate / found.reference)
    assert many.high - many.low < few.high - few.low


def test_a_single_text_is_not_certain() -> None:
    found = perplexity([_text(0)])
    assert found is not None
    assert found.low < found.ratio < found.high
    assert found.high - found.low > 0.001


def test_without_a_second_token_there_is_none() -> None:
    assert perplexity([_text(0, length=1)]) is None
