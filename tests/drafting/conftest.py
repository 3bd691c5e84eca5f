"""Checkpoints to draft for, and a way to draft from a clean directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.drafting import Draft, DraftOptions, draft_recipe
from tests.checkpoints import build_image_classifier, build_text_classifier
from tests.drafting.data import Drafter


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text_classifier(tmp_path_factory.mktemp("models") / "Reviews")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image_classifier(tmp_path_factory.mktemp("models") / "digits")


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drafter:
    """Drafts from a clean directory, as a user does."""
    monkeypatch.chdir(tmp_path)

    def call(model: Path | str, output: str = "recipe.yaml", **options: Any) -> Draft:
        return draft_recipe(
            DraftOptions(
                model=str(model), output=Path(output), store=tmp_path / "store", **options
            )
        )

    return call
