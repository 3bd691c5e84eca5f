"""Whether a recipe uses the recipe language at all: most do not, and load without importing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe.events import Value

LANGUAGE_KEYS = ("extends", "vars", "matrix")
"""Gone once a recipe is expanded; a target may have the last one."""

OPENING = "${"
"""Begins a variable."""


def is_plain(value: Value) -> bool:
    """Whether a document uses nothing of the recipe language."""
    if isinstance(value, dict):
        if any(key in value for key in LANGUAGE_KEYS):
            return False
        targets = value.get("targets")
        if isinstance(targets, list) and any(
            isinstance(t, dict) and "matrix" in t for t in targets
        ):
            return False
    return not _has_variable(value)


def _has_variable(value: Value) -> bool:
    match value:
        case str():
            return OPENING in value
        case dict():
            return any(_has_variable(inner) for inner in value.values())
        case list():
            return any(_has_variable(inner) for inner in value)
        case _:
            return False
