"""From a recipe as it is written to the recipes that it stands for.

In this order: what it extends is merged under it, the top-level matrix makes documents, a target's
matrix makes targets, and variables are replaced. Documents that need none of this never come here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from pipeline.recipe.combined import grouped
from pipeline.recipe.extending import read_extended
from pipeline.recipe.language import Entry, Language
from pipeline.recipe.matrix import Combination, combinations, label
from pipeline.recipe.parts import Part, Scalar, count, document_of
from pipeline.recipe.plain import LANGUAGE_KEYS
from pipeline.recipe.problems import Problem, recipe_error
from pipeline.recipe.variables import (
    Allowance,
    Scope,
    Spent,
    overridden,
    variable_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.errors import RecipeError
    from pipeline.recipe.events import Document
    from pipeline.recipe.problems import KeyPath

MAX_EXPANDED_NODES = 50_000
"""Values of all recipes that one file stands for, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """One of the recipes that a file stands for.

    Attributes:
        document: Without the keys of the recipe language, all variables replaced.
        values: The combination of the top-level matrix; empty without one.
        target_values: The same for each target, by its place.
    """

    document: Document
    values: Mapping[str, Scalar]
    target_values: tuple[Mapping[str, Scalar], ...]


def expand(
    document: Document, path: Path, given: Mapping[str, Scalar]
) -> tuple[tuple[Expanded, ...], tuple[Path, ...]]:
    """All recipes that a document stands for, in the order of its matrix, and the files read.

    Args:
        document: The recipe, as read.
        path: Its file.
        given: Values of variables from outside.

    Raises:
        RecipeError: for everything that can be wrong with the recipe language in it.
    """
    merged = read_extended(document, path)
    file = str(path)
    if merged.problems:
        raise recipe_error(file, merged.problems)
    root = merged.root
    _check_shapes(root, file)
    language = {key: root.entries.pop(key) for key in LANGUAGE_KEYS if key in root.entries}
    defined = (
        {name: variable_of(part) for name, part in language["vars"].entries.items()}
        if "vars" in language
        else {}
    )
    expander = _Expander(root=root, matrix=language.get("matrix"), file=file)
    expander.require_free(given)
    variables = overridden(defined, given)
    try:
        expanded = expander.expanded(
            Scope(variables=variables, problems=expander.problems, allowance=Allowance())
        )
    except Spent:
        raise expander.error(
            "variables and matrices make more text than a recipe may have"
        ) from None
    if expander.problems:
        documents = [each.document for each in expanded]
        raise recipe_error(file, grouped(expander.problems, documents))
    return expanded, merged.files


class _Expander:
    """Expands the matrices of one merged document."""

    def __init__(self, *, root: Part, matrix: Part | None, file: str) -> None:
        self.root = root
        self.matrix = matrix
        self.file = file
        self.problems: list[Problem] = []
        self.nodes_left = MAX_EXPANDED_NODES

    def error(self, message: str) -> RecipeError:
        """An error about the whole recipe."""
        problem = Problem(position=self.root.position, path=(), text=lambda: message)
        return recipe_error(self.file, [problem])

    def require_free(self, given: Mapping[str, Scalar]) -> None:
        """Refuse values from outside for what a matrix sets: the matrix would win, unseen."""
        for matrix in (self.matrix, *(entry.get("matrix") for entry in self._entries())):
            for name, part in _names(matrix):
                if name in given:
                    problem = Problem(
                        position=part.key or part.position,
                        path=part.path,
                        text=lambda name=name: (
                            f"`{name}` is given with `--var`, and this matrix sets it"
                        ),  # type: ignore[misc]
                        hint="`--var` is for the variables under `vars`",
                    )
                    raise recipe_error(self.file, [problem])

    def expanded(self, scope: Scope) -> tuple[Expanded, ...]:
        """One document for each combination of the top-level matrix."""
        if self.matrix is None:
            found: list[Combination] = [{}]
        else:
            self._require_not_above()
            found = combinations(scope.replaced(self.matrix), self.problems)
        return tuple(
            self._one(
                scope.within(combination, label(combination)) if combination else scope,
                combination,
            )
            for combination in found
        )

    def _entries(self) -> list[dict[str, Part]]:
        targets = self.root.entries.get("targets")
        return [entry.entries for entry in targets.items] if targets else []

    def _require_not_above(self) -> None:
        """A target's matrix must not set what the recipe's sets: which one counts is unclear."""
        above = dict(_names(self.matrix))
        for entry in self._entries():
            for name, part in _names(entry.get("matrix")):
                if name in above:
                    text = f"the recipe's own matrix sets `{name}` too"
                    position = part.key or part.position
                    self.problems.append(
                        Problem(position=position, path=part.path, text=lambda t=text: t)  # type: ignore[misc]
                    )

    def _one(self, scope: Scope, combination: Combination) -> Expanded:
        self._take(self.root)
        entries = dict(self.root.entries)
        targets = entries.get("targets")
        target_values: list[Mapping[str, Scalar]] = []
        if targets is not None and isinstance(targets.content, list):
            made: list[Part] = []
            for entry in targets.items:
                for part, values in self._targets(entry, scope, label(combination)):
                    made.append(part)
                    target_values.append(values)
            self._require_own_names(made)
            entries["targets"] = replace(targets, content=made)
        content = {
            name: part if name == "targets" and part is not targets else scope.replaced(part)
            for name, part in entries.items()
        }
        root = replace(self.root, content=content, combination=label(combination))
        return Expanded(
            document=document_of(root),
            values=_plain(combination),
            target_values=tuple(target_values),
        )

    def _targets(
        self, entry: Part, scope: Scope, above: str
    ) -> Iterable[tuple[Part, Mapping[str, Scalar]]]:
        if "matrix" not in entry.entries:
            yield scope.replaced(entry), {}
            return
        body = {name: part for name, part in entry.entries.items() if name != "matrix"}
        template = replace(entry, content=body)
        for combination in combinations(scope.replaced(entry.entries["matrix"]), self.problems):
            self._take(template)
            name = ", ".join(filter(None, (above, label(combination))))
            part = scope.within(combination, name).replaced(template)
            yield replace(part, combination=name), _plain(combination)

    def _take(self, part: Part) -> None:
        self.nodes_left -= count(part)
        if self.nodes_left < 0:
            raise self.error(
                f"the matrices make more than {MAX_EXPANDED_NODES:,} values; make several recipes"
            )

    def _require_own_names(self, targets: list[Part]) -> None:
        """Two targets of one name, where a matrix made one of them; others are checked later."""
        seen: dict[object, Part] = {}
        for target in targets:
            name = target.entries.get("name")
            if name is None or not isinstance(name.content, str):
                continue
            other = seen.setdefault(name.content, target)
            if other is target or not (other.combination or target.combination):
                continue
            made = " and ".join(
                each.combination or "one outside the matrix" for each in (other, target)
            )
            text = f"two targets are named `{name.content}`: {made}"
            variable = (target.combination or other.combination).rpartition(", ")[2]
            self.problems.append(
                Problem(
                    position=name.position,
                    path=name.path,
                    text=lambda text=text: text,  # type: ignore[misc]
                    hint="put a variable of the matrix into the name, such as "
                    f"`name: {name.content}-${{{variable.partition('=')[0]}}}`",
                    kind="name",
                )
            )


def _check_shapes(root: Part, file: str) -> None:
    """Whether the keys of the language hold what they may, before anything is made of it."""
    from pipeline.recipe.faults import find_problems

    document = document_of(root)
    problems: list[Problem] = []
    for model, prefix in _language_places(root):
        value = document.at(prefix)
        try:
            model.model_validate_json(json.dumps(value))
        except ValidationError as error:
            problems += find_problems(error, document, prefix)
    if problems:
        raise recipe_error(file, problems)


def _language_places(root: Part) -> Iterable[tuple[type[BaseModel], KeyPath]]:
    yield Language, ()
    targets = root.entries.get("targets")
    for place, entry in enumerate(targets.items if targets else ()):
        if "matrix" in entry.entries:
            yield Entry, ("targets", place)


def _names(matrix: Part | None) -> Iterable[tuple[str, Part]]:
    """The variables that a matrix sets, each with one place where it does."""
    if matrix is None:
        return
    if "axes" in matrix.entries:
        yield from matrix.entries["axes"].entries.items()
    if "include" in matrix.entries:
        for include in matrix.entries["include"].items:
            yield from include.entries.items()


def _plain(combination: Combination) -> dict[str, Scalar]:
    return {name: part.scalar for name, part in combination.items()}
