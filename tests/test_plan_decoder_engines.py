"""Plans for engines of decoders: ranges of the cache, the chain, and what is refused before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from tests.decoders import build_tiny_llama
from tests.recipes import RTX, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan

BATCH = (1, 2, 4)
INT4 = {"precision": "int4", "quantization": {"mode": "weight_only"}}


def _range(least: int, usual: int, most: int) -> dict[str, int]:
    return {"min": least, "opt": usual, "max": most}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=258)


def _plan(tmp_path: Path, checkpoint: Path, **target: Any) -> Plan:
    model = {"source": str(checkpoint), "task": "text-generation"}
    path = write_recipe(tmp_path / "recipe.yaml", checkpoint, model=model, targets=[RTX | target])
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


def _profiles(plan: Plan) -> Any:
    (engine,) = [node.config for node in plan.nodes if node.stage.name == "engine"]
    return engine.profiles  # type: ignore[attr-defined]


def test_one_profile_starts_texts_and_one_goes_on_with_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    """No engine takes a longer text than `shapes` says, and no token of one is left out."""
    first, then = _profiles(_plan(tmp_path, checkpoint))
    assert first == {
        "batch": BATCH,
        "sequence": (2, 8, 16),
        "past_sequence": (0, 0, 0),
        "total_sequence": (2, 8, 16),
    }
    assert then == {
        "batch": BATCH,
        "sequence": (1, 1, 1),
        "past_sequence": (1, 8, 15),
        "total_sequence": (2, 9, 16),
    }


def test_the_mask_is_as_long_as_past_and_new_tokens_together(
    tmp_path: Path, checkpoint: Path
) -> None:
    """Chunks behind any past, single tokens although `shapes` begins at two, and an empty cache."""
    chunks = {"sequence": _range(1, 8, 16), "past_sequence": _range(0, 4, 32)}
    whole = {"batch": _range(1, 1, 1)}
    first, second = _profiles(_plan(tmp_path, checkpoint, profiles=[chunks, whole]))
    assert first["past_sequence"] == (0, 4, 32)
    assert first["total_sequence"] == (1, 12, 48)
    assert second["past_sequence"] == (0, 0, 0)
    assert second["total_sequence"] == (2, 8, 16)


@pytest.mark.parametrize(
    ("target", "behind"),
    [
        ({}, ["fuse_attention", "cast"]),
        (INT4, ["fuse_attention", "cast", "quantize_weights"]),
        ({"attention": "products"}, ["cast"]),
    ],
)
def test_attention_is_one_operator_unless_products_are_wanted(
    tmp_path: Path, checkpoint: Path, target: dict[str, Any], behind: list[str]
) -> None:
    plan = _plan(tmp_path, checkpoint, **target)
    chain = plan.targets[0].chain
    (links,) = chain.models.values()
    stages = [plan.nodes[link.node.node].stage.name for link in links]
    assert stages == ["export", "simplify", "arrange_attention", *behind]
    # What the engine is made from is read with a cache, token by token and in chunks, on the CPU.
    checked = [check for check in plan.targets[0].checks if check.check == "generation"]
    assert [check.of for check in checked] == [links[0].node, links[-1].node]
    assert "not fed here yet" in chain.not_run_reason


@pytest.mark.parametrize(
    ("profile", "where", "message"),
    [
        (
            {"past_sequence": _range(0, 8, 49)},
            "profiles[0]",
            r"49 tokens in the cache and 16 new ones are 65, and the checkpoint has 64 positions",
        ),
        (
            {"past_sequence": _range(9, 8, 10)},
            "profiles[0].past_sequence",
            "min <= opt <= max does not hold: 9, 8, 10",
        ),
        ({"past_sequence": _range(-1, 8, 10)}, "profiles[0].past_sequence.min", "0"),
        (
            {"sequence": _range(1, 8, 17)},
            "profiles[0].sequence",
            "sequence goes from 1 to 17, and `shapes.sequence` from 2 to 16",
        ),
        (
            {"num_choices": _range(1, 1, 1)},
            "profiles[0].num_choices",
            "have no axis `num_choices`",
        ),
    ],
)
def test_an_impossible_profile_is_refused_at_its_line(
    tmp_path: Path, checkpoint: Path, profile: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        _plan(tmp_path, checkpoint, profiles=[profile])
    assert f"targets[0].{where}" in str(caught.value)


def test_encoders_have_no_cache(tmp_path: Path, sentence_encoder: Path) -> None:
    target = RTX | {"profiles": [{"past_sequence": _range(0, 0, 1)}]}
    path = write_recipe(tmp_path / "recipe.yaml", sentence_encoder, targets=[target])
    with pytest.raises(RecipeError, match="have no axis `past_sequence`"):
        prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))
