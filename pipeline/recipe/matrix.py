"""`matrix`: combinations of values, with the rules of GitHub Actions where these say enough.

Every value of an axis meets every value of the others, in the order in which they are written.
`exclude` leaves out the combinations that have all of its values. `include` adds its values to the
combinations of the axes whose values it does not contradict; where there is none, it is a
combination of its own. What changes nothing is an error, because it is a mistake.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

from pipeline.recipe.language import MAX_COMBINATIONS
from pipeline.recipe.problems import Problem, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.recipe.parts import Part

Combination: TypeAlias = "dict[str, Part]"
"""Variable -> the part that holds its value, in the order of the axes."""


def combinations(matrix: Part, problems: list[Problem]) -> list[Combination]:
    """The combinations that a matrix stands for.

    Args:
        matrix: Checked to have the shape of a `Matrix`, variables replaced.
        problems: Causes are added here; the result is of no use then.
    """
    before = len(problems)
    parts = matrix.entries
    axes = (
        {name: axis.items for name, axis in parts["axes"].entries.items()}
        if "axes" in parts
        else {}
    )
    for values in axes.values():
        _require_distinct(values, problems)
    if math.prod(len(values) for values in axes.values()) > MAX_COMBINATIONS:
        problems.append(_problem(matrix, _TOO_MANY, "many"))
    if len(problems) > before:
        return []
    full = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if not axes:
        full = []
    kept = _without(full, parts["exclude"].items, axes, problems) if "exclude" in parts else full
    if "include" in parts:
        kept = _with(kept, parts["include"].items, axes, problems)
    if len(kept) > MAX_COMBINATIONS:
        problems.append(_problem(matrix, _TOO_MANY, "many"))
    if not kept and len(problems) == before:
        problems.append(_problem(matrix, "every combination is excluded", "none"))
    return kept


def label(combination: Mapping[str, Part]) -> str:
    """A combination in words, such as `model=a, precision=int8`."""
    return ", ".join(f"{name}={_shown(part)}" for name, part in combination.items())


def _without(
    full: list[Combination],
    excludes: list[Part],
    axes: Mapping[str, list[Part]],
    problems: list[Problem],
) -> list[Combination]:
    excluded: set[int] = set()
    for exclude in excludes:
        unknown = [name for name in exclude.entries if name not in axes]
        if unknown:
            problems.extend(_unknown_axis(exclude.entries[name], name, axes) for name in unknown)
            continue
        found = {at for at, each in enumerate(full) if _agree(each, exclude.entries)}
        if not found:
            text = f"excludes nothing: there is no combination with {label(exclude.entries)}"
            problems.append(_problem(exclude, text, "nothing"))
        excluded |= found
    return [each for at, each in enumerate(full) if at not in excluded]


def _with(
    kept: list[Combination],
    includes: list[Part],
    axes: Mapping[str, list[Part]],
    problems: list[Problem],
) -> list[Combination]:
    made = [dict(each) for each in kept]
    own: list[Combination] = []
    for include in includes:
        values = include.entries
        on_axes = {name: part for name, part in values.items() if name in axes}
        fitting = [at for at, each in enumerate(kept) if _agree(each, on_axes)]
        is_known = any(_agree(each, values) and len(each) == len(values) for each in own)
        if is_known or (fitting and len(on_axes) == len(values)):
            text = f"adds nothing: there is a combination with {label(values)} already"
            problems.append(_problem(include, text, "nothing"))
        elif fitting:
            for at in fitting:
                made[at].update({name: values[name] for name in values if name not in axes})
        else:
            own.append(dict(values))
    return made + own


def _agree(combination: Mapping[str, Part], values: Mapping[str, Part]) -> bool:
    return all(
        name in combination and _same(combination[name], part) for name, part in values.items()
    )


def _same(one: Part, other: Part) -> bool:
    # In Python, 1 == True == 1.0; in a recipe these are three values.
    return type(one.content) is type(other.content) and one.content == other.content


def _require_distinct(values: Iterable[Part], problems: list[Problem]) -> None:
    seen: set[tuple[type, object]] = set()
    for part in values:
        if (type(part.content), part.scalar) in seen:
            problems.append(_problem(part, f"`{_shown(part)}` is given twice", "twice"))
        seen.add((type(part.content), part.scalar))


def _unknown_axis(part: Part, name: str, axes: Mapping[str, object]) -> Problem:
    def text() -> str:
        from pipeline.recipe.wording import nearest

        meant = nearest(name, axes)
        listed = ", ".join(f"`{axis}`" for axis in axes) or "none"
        advice = f" - did you mean `{meant}`?" if meant else f"; the axes are: {listed}"
        return f"there is no axis `{shorten(name)}`{advice}"

    return Problem(position=part.key or part.position, path=part.path, text=text, kind="axis")


_TOO_MANY = f"a matrix has at most {MAX_COMBINATIONS} combinations"


def _problem(part: Part, text: str, kind: str) -> Problem:
    position = part.key if part.key and isinstance(part.content, dict | list) else part.position
    return Problem(position=position, path=part.path, text=lambda: text, kind=kind)


def _shown(part: Part) -> str:
    from pipeline.recipe.schema import flow_text

    return shorten(part.text or flow_text(part.scalar))
