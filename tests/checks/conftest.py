"""Graphs that several checks are tried on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.checks.chain import Chain, make_chain

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Chain:
    """Every graph of a tiny encoder. Copy what you damage."""
    return make_chain(tmp_path_factory.mktemp("chain"), sentence_encoder)
