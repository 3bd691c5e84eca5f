"""Recipes: their types, and the way from a YAML file to them."""

from __future__ import annotations

from pipeline.recipe.load import (
    LoadedRecipe,
    dump_recipe,
    load_recipe,
    load_recipe_file,
    load_recipes,
)
from pipeline.recipe.types import Recipe

__all__ = [
    "LoadedRecipe",
    "Recipe",
    "dump_recipe",
    "load_recipe",
    "load_recipe_file",
    "load_recipes",
]
