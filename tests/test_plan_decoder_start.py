"""With which token a decoder begins: what cannot be is refused, what is unusual is told."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, build, open_store, prepare_plan
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from tests.pairs import END, PAD, SPEECH, TEXTS, build_pair, write_pairs, write_sounds
from tests.recipes import FP32, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

KEY = "decoder_start_token_id"
TRANSCRIPT = 255


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("pairs")
    return {family: build_pair(home / family, family) for family in ("t5", "bart", "whisper")}


def _edited(tmp_path: Path, checkpoint: Path, start: int) -> Path:
    """A copy, both of whose files say that its decoder begins with this token."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    for name in ("config.json", "generation_config.json"):
        document = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(document | {KEY: start}))
    return copy


def _recipe(tmp_path: Path, checkpoint: Path, task: str = TEXTS) -> Path:
    data: Path
    if task == SPEECH:
        data = write_sounds(tmp_path / "sounds")
    else:
        data = write_pairs(tmp_path / "pairs.jsonl")
    changes: dict[str, Any] = {
        "model": {"source": str(checkpoint), "task": task},
        "data": {"evaluation": {"source": str(data), "samples": 4}},
        "targets": [FP32],
    }
    return write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes)


def _notes(tmp_path: Path, checkpoint: Path, task: str = TEXTS) -> tuple[str, ...]:
    recipe = load_recipe_file(_recipe(tmp_path, checkpoint, task))
    return prepare_plan(recipe, open_store(BuildOptions(store=tmp_path / "store"))).source.notes


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (97, "which its tokenizer takes for plain text"),
        (258, "is 258, and the model's tokens are 0 to 257"),
        (-1, "is -1"),
    ],
)
def test_what_can_begin_no_text_is_refused(
    tmp_path: Path, checkpoints: dict[str, Path], start: int, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        _notes(tmp_path, _edited(tmp_path, checkpoints["t5"], start))
    assert KEY in caught.value.message
    assert words in caught.value.message
    assert caught.value.where
    assert "config.json" in caught.value.hint


def test_one_that_was_taught_so_can_be_listed(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    copy = _edited(tmp_path, checkpoints["t5"], 97)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 97, "content": "§"})
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len(_notes(tmp_path, copy)) == 1


@pytest.mark.parametrize(
    ("family", "start", "usual"),
    [("t5", END, "`pad_token_id`, 256"), ("bart", PAD, "`eos_token_id`, 257")],
)
def test_an_unusual_one_is_told(
    tmp_path: Path, checkpoints: dict[str, Path], family: str, start: int, usual: str
) -> None:
    (note,) = _notes(tmp_path, _edited(tmp_path, checkpoints[family], start))
    assert f"begins with token {start}" in note
    assert usual in note


@pytest.mark.parametrize(("family", "start"), [("t5", PAD), ("bart", END)])
def test_the_usual_one_is_not_spoken_of(
    tmp_path: Path, checkpoints: dict[str, Path], family: str, start: int
) -> None:
    assert _notes(tmp_path, _edited(tmp_path, checkpoints[family], start)) == ()


def test_a_whisper_begins_as_its_tokenizer_says(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    copy = _edited(tmp_path, checkpoints["whisper"], PAD)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        if token["id"] == END:
            token["content"] = "<|startoftranscript|>"
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RecipeError, match="begins a transcript with 257"):
        _notes(tmp_path, copy, SPEECH)


@pytest.mark.slow
def test_a_report_tells_of_an_unusual_one(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    recipe = load_recipe_file(_recipe(tmp_path, _edited(tmp_path, checkpoints["t5"], END)))
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1)
    report = build(recipe, options).report()
    assert any("begins with token 257" in warning for warning in report.warnings)
