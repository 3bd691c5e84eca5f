"""Drafts for encoders with decoders: a text that is made of another, and what is said in a sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.build import BuildOptions, build
from pipeline.drafting.columns import ColumnOptions
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from tests.drafting.data import write_rows
from tests.pairs import POSITIONS, SPEECH, TEXTS, build_pair, write_pairs, write_sounds

if TYPE_CHECKING:
    from tests.drafting.data import Drafter

TARGETS = ["cpu-fp32", "cpu-int8", "cpu-int4"]


def test_a_pair_of_texts(draft: Drafter, tmp_path: Path) -> None:
    build_pair(tmp_path / "t5")
    write_pairs(tmp_path / "pairs.jsonl", 9)
    recipe = draft("./t5", data="pairs.jsonl").recipe
    assert recipe.model.task == TEXTS
    assert [target.name for target in recipe.targets] == TARGETS
    assert recipe.benchmark is None
    assert recipe.gates.checks.generation_speed is not None
    spec = recipe.data.evaluation
    assert (spec.text, spec.target, spec.samples) == ("text", "target", 9)
    # The longest of the sources and of what is written, with the token before it.
    assert recipe.shapes.sequence is not None
    rows = [len("a lazy dog while"), len("the quick brown fox")]
    assert recipe.shapes.sequence.max >= max(rows)
    assert recipe.shapes.batch.max == 8


def test_other_columns_are_named_or_asked_for(draft: Drafter, tmp_path: Path) -> None:
    build_pair(tmp_path / "t5")
    write_rows(Path("rows.jsonl"), [{"en": "one two", "de": "eins zwei"}] * 4)
    with pytest.raises(RecipeError, match="no column has a usual name of the text") as caught:
        draft("./t5", data="rows.jsonl")
    assert "--text COLUMN" in caught.value.hint
    with pytest.raises(RecipeError, match="no column has a usual name") as caught:
        draft("./t5", data="rows.jsonl", columns=ColumnOptions(text="en"))
    assert "--target-text COLUMN" in caught.value.hint
    made = draft("./t5", data="rows.jsonl", columns=ColumnOptions(text="en", target="de"))
    assert made.recipe.data.evaluation.target == "de"
    with pytest.raises(RecipeError, match="there is no column `nl`") as caught:
        draft("./t5", "b.yaml", data="rows.jsonl", columns=ColumnOptions(text="en", target="nl"))


def test_what_should_be_written_is_never_made_up(draft: Drafter, tmp_path: Path) -> None:
    build_pair(tmp_path / "t5")
    with pytest.raises(RecipeError, match="cannot be made up") as caught:
        draft("./t5")
    assert '{"text": "...", "target": "..."}' in caught.value.hint
    write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(RecipeError, match="takes no calibration data"):
        draft("./t5", data="pairs.jsonl", calibration="pairs.jsonl")


def test_sounds_and_what_is_said(draft: Drafter, tmp_path: Path) -> None:
    build_pair(tmp_path / "whisper", "whisper")
    write_sounds(tmp_path / "sounds")
    recipe = draft("./whisper", data="sounds/test.jsonl").recipe
    assert recipe.model.task == SPEECH
    spec = recipe.data.evaluation
    assert (spec.audio, spec.target) == ("audio", "text")
    assert recipe.shapes.sequence is not None
    assert recipe.shapes.sequence.max <= POSITIONS


@pytest.mark.slow
def test_a_drafted_pair_converts(draft: Drafter, tmp_path: Path) -> None:
    build_pair(tmp_path / "t5", seed=3)
    write_pairs(tmp_path / "pairs.jsonl", 8)
    made = draft("./t5", data="pairs.jsonl")
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=2)
    result = build(load_recipe_file(made.path), options)
    assert result.verdict == "passed", result.reasons
