"""An output that cannot be written is refused before anything is computed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.build import BuildOptions, build
from pipeline.bundle.placing import placed_whole
from pipeline.errors import RecipeError
from pipeline.publish import require_place
from pipeline.recipe import load_recipe_file
from tests.checkpoints import build_sentence_encoder
from tests.recipes import write_recipe

if TYPE_CHECKING:
    from pathlib import Path


def test_a_build_below_a_file_starts_nothing(tmp_path: Path) -> None:
    checkpoint = build_sentence_encoder(tmp_path / "checkpoint")
    (tmp_path / "file").touch()
    recipe = load_recipe_file(write_recipe(tmp_path / "recipe.yaml", checkpoint))
    events: list[object] = []
    options = BuildOptions(output=tmp_path / "file/deeper", store=tmp_path / "store")
    with pytest.raises(RecipeError, match="file` is no directory") as caught:
        build(recipe, options, listener=events.append)
    assert caught.value.where == "--output"
    assert caught.value.hint
    assert events == []


@pytest.mark.parametrize("name", ["file", "file/a", "file/a/b", "dangling", "dangling/a"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(RecipeError, match="is no directory"):
        require_place(tmp_path / name, "--output")


def test_what_can_be_made_is_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (".", "a/b/c", "link", "link/a"):
        require_place(tmp_path / name, "--output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_a_bundle_is_not_begun_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = placed_whole(
        tmp_path / "file/models", replace=False, is_ours=lambda _: True, what="model"
    )
    with pytest.raises(RecipeError, match="file` is no directory"), place:
        pytest.fail("it was begun")
