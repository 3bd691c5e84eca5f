"""Recipe file -> `Recipe`, with every cause of refusal at its line and column."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from pipeline.recipe.events import Document, read_document
from pipeline.recipe.problems import Position, Problem, format_where, recipe_error
from pipeline.recipe.read import decode_text, read_bytes
from pipeline.recipe.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.errors import RecipeError
    from pipeline.hashing import JSON
    from pipeline.recipe.problems import KeyPath


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe and the file it came from, so that later checks can point at a line of it.

    Attributes:
        recipe: What is asked for, defaults filled in.
        path: The file, as it was given.
        positions: Key path -> where to look for it, for all that is written in the file.
        content: The file's bytes, as they were read.
    """

    recipe: Recipe
    path: Path
    positions: Mapping[KeyPath, Position]
    content: bytes

    def where(self, *key_path: str | int) -> str:
        """`file:line:column: key.path`, for `RecipeError(where=...)`.

        What is not written in the file, because it is a default, has the place of the nearest
        mapping or list around it.
        """
        written = key_path
        while written not in self.positions:
            written = written[:-1]
        return format_where(str(self.path), self.positions[written], key_path)

    def error(self, message: str, *key_path: str | int, hint: str = "") -> RecipeError:
        """An error about one place of the recipe, to be raised by the caller."""
        problem = Problem(
            position=self.positions[()], path=key_path, text=lambda: message, hint=hint
        )
        error = recipe_error(str(self.path), [problem])
        error.where = self.where(*key_path)
        return error


def load_recipe_file(path: str | Path) -> LoadedRecipe:
    """Read and check a recipe file.

    Args:
        path: A UTF-8 file in YAML 1.2; messages call it by this name.

    Raises:
        RecipeError: for everything that can be wrong with it, all causes in one error.
    """
    path = Path(path)
    content = read_bytes(path)
    file = str(path)
    document = read_document(decode_text(content, file), file)
    return LoadedRecipe(
        recipe=_validated(document, file),
        path=path,
        positions={key_path: document.position(key_path) for key_path in document.values},
        content=content,
    )


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        RecipeError: for everything that can be wrong with it, all causes in one error.
    """
    return load_recipe_file(path).recipe


def dump_recipe(recipe: Recipe) -> dict[str, JSON]:
    """A recipe as JSON with all defaults filled in; loading it gives an equal recipe."""
    return cast("dict[str, JSON]", recipe.model_dump(mode="json"))


def _validated(document: Document, file: str) -> Recipe:
    try:
        # As JSON, so that lists become tuples and yet `3` stays no text and `1` no boolean.
        recipe = Recipe.model_validate_json(json.dumps(document.value))
    except ValidationError as err:
        from pipeline.recipe.faults import find_problems  # words for mistakes: 20 ms

        raise recipe_error(file, find_problems(err, document)) from None
    if document.problems:
        raise recipe_error(file, document.problems)
    return recipe
