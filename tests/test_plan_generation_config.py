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

    from pipeline.planning import Plan

VOCABULARY = 258


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=VOCABULARY)


def plan(tmp_path: Path, checkpoint: Path, **changes: Any) -> Plan:
    changes.setdefault("model", {"source": str(checkpoint), "task": "text-generation"})
    changes.setdefault("targets", [FP32])
    path = write_recipe(tmp_path / "recipe.yaml", checkpoint, **changes)
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


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
        ({"forced_bos_token_id": 999}, "`forced_bos_token_id` is 999, and the model's tokens are"),
        ({"no_repeat_ngram_size": "3"}, "`no_repeat_ngram_size` is to be 0 or more, found '3'"),
        ({"suppress_tokens": 5}, "`suppress_tokens` is to be a list, found 5"),
        ({"max_length": 65}, "`max_length` is 65, and the model has 64 positions"),
        ({"max_length": 30, "min_length": 31}, "`min_length` is 31, and `max_length` 30"),
        ({"max_new_tokens": 65}, "`max_new_tokens` is 65, and the model has 64 positions"),
        (
            {"max_new_tokens": 8, "min_new_tokens": 9},
            "`min_new_tokens` is 9, and `max_new_tokens` 8",
        ),
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
    "said",
    [
        {},
        {"eos_token_id": [0, 1], "pad_token_id": -1, "num_beams": 4, "max_length": 64},
        # Of a vocabulary that is larger than the model's, as it stands in files of Whisper.
        {"suppress_tokens": [1, 50_000], "min_length": 0, "forced_bos_token_id": None},
    ],
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


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"max_length": 48}, "max_length"),
        # As by transformers the second is heeded, with at least one token before them.
        ({"max_length": 60, "max_new_tokens": 47}, "max_new_tokens"),
    ],
)
def test_a_static_cache_shorter_than_the_checkpoint_promises_is_refused(
    tmp_path: Path, checkpoint: Path, said: dict[str, int], key: str
) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps(said))
    long, short = ({**FP32, "static_cache": {"length": length}} for length in (48, 47))
    plan(tmp_path, checkpoint, targets=[long])
    with pytest.raises(RecipeError, match="47 tokens is shorter than the texts of 48") as caught:
        plan(tmp_path, checkpoint, targets=[short])
    assert "targets[0]" in caught.value.where
    assert f"`{key}`" in caught.value.hint


@pytest.mark.parametrize("is_own", [True, False])
def test_times_beyond_the_positions_of_the_model_are_refused(
    tmp_path: Path, checkpoint: Path, is_own: bool
) -> None:
    """Prompts of 8 tokens, and 64 positions."""
    checks = {"generation_speed": {"tokens": 57}}
    own = {"targets": {FP32["name"]: {"checks": checks}}} if is_own else {"checks": checks}
    gates = {"parity": {"cosine_similarity": {"min": 0.9}}, "speed": None, **own}
    with pytest.raises(RecipeError, match="times texts of 65 tokens") as caught:
        plan(tmp_path, checkpoint, gates=gates)
    assert caught.value.where.endswith("generation_speed.tokens")
    assert ("gates.targets.cpu-fp32" in caught.value.where) == is_own
    assert "56 or less" in caught.value.hint
    checks["generation_speed"]["tokens"] = 56
    plan(tmp_path, checkpoint, gates=gates)


def test_what_is_timed_is_what_the_recipe_names(tmp_path: Path, checkpoint: Path) -> None:
    """Ranges go to 4 texts and 16 tokens, and there are 64 positions."""

    def gates(shapes: list[list[int]]) -> dict[str, Any]:
        checks = {"generation_speed": {"shapes": shapes}}
        return {"parity": {"cosine_similarity": {"min": 0.9}}, "speed": None, "checks": checks}

    asked = [[1, 16, 48], [4, 4, 2], [1, 16, 48]]
    made = plan(tmp_path, checkpoint, gates=gates(asked))
    (timed,) = [node for node in made.nodes if node.stage.name == "benchmark_generation"]
    assert timed.config.works == ((1, 16, 48), (4, 4, 2))  # type: ignore[attr-defined]
    for shape, message in (
        ([5, 4, 2], "batch 5 is timed, but `shapes.batch` goes from 1 to 4"),
        ([1, 17, 2], "sequence 17 is timed"),
        ([1, 16, 49], r"texts of 65 tokens \(16 before the 49 new ones\)"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            plan(tmp_path, checkpoint, gates=gates([[1, 4, 2], shape]))
        assert caught.value.where.endswith("generation_speed.shapes[1]")
    short = [{**FP32, "static_cache": {"length": 63}}]
    with pytest.raises(RecipeError, match="prompts of 16 tokens and 48 new ones"):
        plan(tmp_path, checkpoint, targets=short, gates=gates(asked))
