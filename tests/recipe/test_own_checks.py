"""A target's own `checks` change what they name, and leave everything else as the recipe has it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import dump_recipe, load_recipe
from pipeline.recipe.types import Recipe

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
recipe: 1
name: small
model: {{source: ./checkpoint, task: text-generation}}
shapes: {{batch: {{min: 1, opt: 2, max: 4}}, sequence: {{min: 1, opt: 8, max: 16}}}}
data: {{evaluation: {{source: "builtin:stdlib-docstrings", samples: 4}}}}
targets:
  - {{name: one, runtime: onnxruntime, precision: fp32}}
  - {{name: two, runtime: onnxruntime, precision: fp32}}
gates:
  parity: {{cosine_similarity: {{min: 0.9}}}}
  checks:
    invariance: null
    headroom: {{min: 4}}
    generation: {{perplexity: 1.05, top1: 0.9}}
    generation_speed: {{tokens: 8, batching: {{texts: 6, rounds: 3}}}}
  targets: {{two: {{checks: {own}}}}}
"""


def load(tmp_path: Path, own: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(own=own))
    return load_recipe(path)


def test_only_what_a_target_names_is_its_own(tmp_path: Path) -> None:
    own = "{generation: {perplexity: 1.5, kl: 0.1}, generation_speed: {batching: {rounds: 5}}}"
    recipe = load(tmp_path, own)
    everyone, checks = recipe.gates.checks, recipe.gates.of("two").checks
    assert checks.generation is not None
    assert everyone.generation is not None
    assert (checks.generation.perplexity, checks.generation.kl) == (1.5, 0.1)
    assert checks.generation.top1 == 0.9  # not named
    assert checks.invariance is None
    assert checks.headroom == everyone.headroom
    speed = checks.generation_speed
    assert speed is not None
    assert speed.batching is not None
    assert (speed.tokens, speed.batching.texts, speed.batching.rounds) == (8, 6, 5)
    assert recipe.gates.of("one").checks == everyone
    assert (everyone.generation.perplexity, everyone.generation.kl) == (1.05, None)


def test_a_check_can_be_left_out_and_taken_in_again(tmp_path: Path) -> None:
    checks = load(tmp_path, "{generation_speed: null, invariance: {}}").gates.of("two").checks
    assert checks.generation_speed is None
    assert checks.invariance is not None


def test_a_named_default_is_taken_too(tmp_path: Path) -> None:
    checks = load(tmp_path, "{generation: {top1: null}}").gates.of("two").checks
    assert checks.generation is not None
    assert (checks.generation.top1, checks.generation.perplexity) == (None, 1.05)


def test_a_dump_loads_to_the_same_limits(tmp_path: Path) -> None:
    recipe = load(tmp_path, "{generation: {perplexity: 1.5}}")
    again = Recipe.model_validate_json(json.dumps(dump_recipe(recipe)))
    assert again == recipe
    assert again.gates.of("two").checks == recipe.gates.of("two").checks


def test_a_mistake_in_them_is_told_alone(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "{generation: {perplexty: 1.5}}")
    assert "did you mean `perplexity`" in str(caught.value)
