"""Fixtures that several packages share: a tiny real checkpoint, and recipes for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer BERT sentence encoder with random weights, seeded."""
    from tests.checkpoints import build_sentence_encoder

    return build_sentence_encoder(tmp_path_factory.mktemp("checkpoint") / "encoder")
