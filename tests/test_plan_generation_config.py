"""A checkpoint whose `generation_config.json` writes no text, and recipes that ask for too long ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.errors import ArtifactError, RecipeError
from pipeline.recipe import load_recipe_file
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 258


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=VOCABULARY)


def plan(tmp_path: Path, checkpoint: Path, **changes: Any) -> None:
    changes.setdefault("model", {"source": str(checkpoint), "task": "text-generation"})
    changes.setdefault("targets", [FP32])
    path = write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes)
    prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"eos_token_id": VOCABULARY},
            "`eos_token_id` is 258, and the model's tokens are 0 to 257",
        ),
        ({"eos_token_id": [1, -1]}, "`eos_token_id` is -1"),
        ({"bos_token_id": "<s>"}, "`bos_token_id` is no token: '<s>'"),
        ({"num_beams": 0}, "`num_beams` is to be more than 0, found 0"),
        ({"do_sample": True, "temperature": 0.0}, "`temperature` is to be more than 0"),
    ],
)
def test_a_generation_config_that_contradicts_its_model_is_refused(
    tmp_path: Path, checkpoint: Path, said: dict[str, Any], words: str
) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, checkpoint)
    assert words in caught.value.message
    assert "recipe.yaml" in caught.value.where or str(checkpoint) in caught.value.where
    assert "generation_config.json" in caught.value.hint


def test_one_that_is_torn_is_damaged(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": ')
    with pytest.raises(ArtifactError, match=r"`generation_config.json` is not JSON"):
        plan(tmp_path, checkpoint)


@pytest.mark.parametrize(
    "said", [{}, {"eos_token_id": [0, 1], "pad_token_id": -1, "num_beams": 4}]
)
def test_what_real_checkpoints_say_is_taken(
    tmp_path: Path, checkpoint: Path, said: dict[str, Any]
) -> None:
    """A greedy one may keep a temperature that is not used."""
    document = {**said, "temperature": 0.0, "do_sample": False}
    (checkpoint / "generation_config.json").write_text(json.dumps(document))
    plan(tmp_path, checkpoint)


def test_a_text_longer_than_the_shapes_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    gates = {
        "parity": {"cosine_similarity": {"min": 0.9}},
        "speed": None,
        "checks": {"generation": {"tokens": 100_000}},
    }
    with pytest.raises(RecipeError, match="continues texts by 100000 tokens") as caught:
        plan(tmp_path, checkpoint, gates=gates)
    assert "shapes.sequence.max" in caught.value.hint
