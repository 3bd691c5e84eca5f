"""Problems that several combinations of a matrix have in common: each cause is said once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.recipe.events import Document
    from pipeline.recipe.problems import KeyPath, Problem


def grouped(problems: Iterable[Problem], documents: Sequence[Document]) -> list[Problem]:
    """Each cause once; which combinations of a matrix have it is said where not all have it."""
    groups: dict[object, list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.position, problem.path, problem.kind), []).append(problem)
    combinations: dict[KeyPath, set[str]] = {}
    for document in documents:
        for origin in document.origins.values():
            combinations.setdefault(origin.path, set()).add(origin.combination)
    return [_with_combination(group, combinations) for group in groups.values()]


def _with_combination(
    group: Sequence[Problem], combinations: Mapping[KeyPath, set[str]]
) -> Problem:
    problem = group[0]
    having = list(dict.fromkeys(each.combination for each in group))
    if not problem.combination or len(having) == len(combinations.get(problem.path, having)):
        return problem
    others = f" and {len(having) - 1} more" if len(having) > 1 else ""
    return replace(problem, text=lambda: f"{problem.text()}, with {having[0]}{others}")
