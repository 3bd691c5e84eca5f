"""Trained models for tests: paths, labelled data, and how good torch is on it.

A model is trained when it is first asked for and not in the cache yet, which takes about a minute;
`scripts/train_fixtures` makes all of them beforehand.
"""

from __future__ import annotations

import pytest

from tests.trained.cache import TrainedModel, ensure_trained

__all__ = ["TrainedModel", "ensure_trained"]


@pytest.fixture(scope="session")
def trained_answers() -> TrainedModel:
    """A BERT question answerer; rows are SQuAD's: `question`, `context` and `answers`."""
    return ensure_trained("answers")


@pytest.fixture(scope="session")
def trained_digits() -> TrainedModel:
    """A ViT image classifier; `test` and `calibration` are folders of images by label."""
    return ensure_trained("digits")


@pytest.fixture(scope="session")
def trained_lm() -> TrainedModel:
    """A Llama that writes docstrings byte by byte; rows have `text`."""
    return ensure_trained("lm")


@pytest.fixture(scope="session")
def trained_snippets() -> TrainedModel:
    """A BERT text classifier; rows have `text` and `label`."""
    return ensure_trained("snippets")


@pytest.fixture(scope="session")
def trained_tokens() -> TrainedModel:
    """A BERT token classifier; rows have `tokens` and `labels`."""
    return ensure_trained("tokens")
