"""Recipe file -> `Recipe`s, with every cause of refusal at its line and column."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe.events import Document, read_document
from pipeline.recipe.plain import is_plain
from pipeline.recipe.problems import (
    MAX_SHOWN_PROBLEMS,
    Position,
    Problem,
    format_where,
    recipe_error,
)
from pipeline.recipe.read import decode_text, read_bytes
from pipeline.recipe.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.hashing import JSON
    from pipeline.recipe.parts import Scalar
    from pipeline.recipe.problems import KeyPath


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe and the file it came from, so that later checks can point at a line of it.

    Attributes:
        recipe: What is asked for, defaults filled in.
        path: The file, as it was given.
        document: What is written, with places; without the keys of the recipe language.
        content: What to keep of it: the file's bytes as they were read, or, where that is not the
            whole recipe, the recipe written out.
        values: The combination of the top-level matrix that it was made with; empty without one.
        target_values: The same for each target, by its place.
        files: The file, and all files that it extends.
    """

    recipe: Recipe
    path: Path
    document: Document
    content: bytes
    values: Mapping[str, Scalar] = field(default_factory=dict)
    target_values: tuple[Mapping[str, Scalar], ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def positions(self) -> Mapping[KeyPath, Position]:
        """Key path -> where to look for it, for all that is written."""
        return {key_path: self.document.position(key_path) for key_path in self.document.values}

    def where(self, *key_path: str | int) -> str:
        """`file:line:column: key.path`, for `RecipeError(where=...)`.

        What is not written in the file, because it is a default, has the place of the nearest
        mapping or list around it. What comes from a file that is extended has its place there.
        """
        document = self.document
        return format_where(
            str(self.path), document.position(key_path), document.origin(key_path).path
        )

    def directory(self, *key_path: str | int) -> Path:
        """Where a relative path that stands at a key path starts: the directory of its file.

        A value that begins with a variable starts where the variable is set; one given with
        `--var` starts at the current directory.
        """
        home = self.document.origin(key_path).home
        if home is not None:
            return home
        return Path(self.document.position(key_path).file or self.path).parent

    def error(self, message: str, *key_path: str | int, hint: str = "") -> RecipeError:
        """An error about one place of the recipe, to be raised by the caller."""
        return RecipeError(message, where=self.where(*key_path), hint=hint)


def load_recipes(
    path: str | Path, variables: Mapping[str, Scalar] | None = None
) -> tuple[LoadedRecipe, ...]:
    """Read and check a recipe file, and expand it: one recipe for each combination of its matrix.

    Args:
        path: A UTF-8 file in YAML 1.2; messages call it by this name.
        variables: Variable -> value, instead of what the recipe's `vars` say. A text is read like a
            plain value (`8` is a number), but where the recipe has text it stays text.

    Raises:
        RecipeError: for everything that can be wrong with it, all causes in one error.
    """
    path = Path(path)
    content = read_bytes(path)
    file = str(path)
    document = read_document(decode_text(content, file), file)
    if not variables and is_plain(document.value):
        (recipe,) = _validated([document], file)
        return (
            LoadedRecipe(
                recipe=recipe, path=path, document=document, content=content, files=(path,)
            ),
        )
    from pipeline.recipe.expansion import expand
    from pipeline.recipe.written import written_out

    expanded, files = expand(document, path, variables or {})
    recipes = _validated([each.document for each in expanded], file)
    _require_own_names(recipes, [each.document for each in expanded], file)
    return tuple(
        LoadedRecipe(
            recipe=recipe,
            path=path,
            document=each.document,
            content=written_out(each.document, files, each.values, variables or {}),
            values=each.values,
            target_values=each.target_values,
            files=files,
        )
        for recipe, each in zip(recipes, expanded, strict=True)
    )


def load_recipe_text(text: str, name: str) -> LoadedRecipe:
    """Read and check a recipe that is in no file; relative paths start at the current directory.

    Args:
        text: A recipe without `extends`, `vars` and `matrix`.
        name: What messages call it.

    Raises:
        RecipeError: for everything that can be wrong with it.
    """
    document = read_document(text, name)
    (recipe,) = _validated([document], name)
    return LoadedRecipe(
        recipe=recipe, path=Path(name), document=document, content=text.encode("utf-8"), files=()
    )


def load_recipe_file(
    path: str | Path, variables: Mapping[str, Scalar] | None = None
) -> LoadedRecipe:
    """Read and check a recipe file that stands for one recipe.

    Args and errors as `load_recipes`; several recipes are an error too.
    """
    loaded = load_recipes(path, variables)
    if len(loaded) > 1:
        names = ", ".join(f"`{each.recipe.name}`" for each in loaded[:5])
        raise RecipeError(
            f"its matrix makes {len(loaded)} recipes ({names}{', ...' * (len(loaded) > 5)}), and "
            "one is asked for",
            where=str(path),
            hint="`convert` and `convert plan` take all of them; in Python, `pipeline.convert_all` "
            "and `pipeline.recipe.load_recipes` do",
        )
    return loaded[0]


def load_recipe(path: str | Path, variables: Mapping[str, Scalar] | None = None) -> Recipe:
    """Read and check a recipe file that stands for one recipe.

    Args and errors as `load_recipes`; several recipes are an error too.
    """
    return load_recipe_file(path, variables).recipe


def dump_recipe(recipe: Recipe) -> dict[str, JSON]:
    """A recipe as JSON with all defaults filled in; loading it gives an equal recipe."""
    return cast("dict[str, JSON]", recipe.model_dump(mode="json"))


def _validated(documents: Sequence[Document], file: str) -> list[Recipe]:
    """The recipes of documents that were made from one file."""
    recipes: list[Recipe] = []
    problems: list[Problem] = []
    for place, document in enumerate(documents, 1):
        try:
            # As JSON, so that lists become tuples and yet `3` stays no text and `1` no boolean.
            recipes.append(Recipe.model_validate_json(json.dumps(document.value)))
        except ValidationError as err:
            from pipeline.recipe.faults import find_problems  # words for mistakes: 20 ms

            problems += find_problems(err, document)
        else:
            problems += document.problems
        if len(problems) > MAX_SHOWN_PROBLEMS * 10:
            documents = documents[:place]
            break  # the rest is more of the same, from other combinations
    if problems:
        from pipeline.recipe.combined import grouped

        raise recipe_error(file, grouped(problems, documents))
    return recipes


def _require_own_names(
    recipes: Sequence[Recipe], documents: Sequence[Document], file: str
) -> None:
    """Two recipes of one name would be versions of one artifact."""
    seen: dict[str, str] = {}
    for recipe, document in zip(recipes, documents, strict=True):
        combination = document.origin(()).combination
        if recipe.name not in seen:
            seen[recipe.name] = combination
            continue
        first = combination.partition("=")[0]
        position = document.position(("name",))
        raise RecipeError(
            f"two of its recipes are named `{recipe.name}`: with {seen[recipe.name]}, and with "
            f"{combination}",
            where=format_where(file, position, document.origin(("name",)).path),
            hint="put a variable of the matrix into the name, such as "
            f"`name: {recipe.name}-${{{first}}}`",
        )
