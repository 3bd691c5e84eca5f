"""`${name}`: variables, and the values that they are replaced by.

A value that is `${name}` and nothing else becomes the variable's value, a number a number. Within
other text a variable stands for its text, as it is written. `$${` stands for `${`. Variables may
use other variables. Nothing is evaluated: there are no expressions and no environment variables.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import ChainMap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.recipe.plain import OPENING
from pipeline.recipe.problems import Problem, format_where, shorten
from pipeline.recipe.scalars import INTEGER_LIMIT, resolve_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.recipe.parts import Part, Scalar
    from pipeline.recipe.problems import KeyPath, Position

MAX_TEXT = 10_000
"""Characters of one text after its variables are replaced."""

MAX_ALL_TEXT = 500_000
"""Characters of all such texts together, and `COST` for each of them."""

COST = 16

MAX_DEEP = 20
"""Variables within variables."""

MAX_NOTED = 3
"""Variables of one text that a message about it names."""

MAX_NAMED = 50
"""Variables that a message names, or compares with a misspelt one; a hostile file has thousands."""

# `$${` first, so that it is not read as a `$` before a variable.
_TOKEN = re.compile(r"\$\$\{|\$\{([a-z][a-z0-9_]*)\}|\$\{")

# Control characters, and what bytes that are no UTF-8 become on the command line.
_NOT_IN_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A named value.

    Attributes:
        value: The value; None where it must be given and was not.
        text: What it stands for within text.
        set_at: Where it is set, in words for messages.
        home: Where relative paths that begin with it start.
        position: Where it is defined.
        path: The key path of its definition.
        is_literal: `${` in it means itself.
    """

    value: Scalar
    text: str
    set_at: str
    home: Path
    position: Position
    path: KeyPath
    is_literal: bool = False


class Spent(Exception):
    """More text than `MAX_ALL_TEXT` was asked for."""


@dataclass(slots=True)
class Allowance:
    """How much may still be made of a recipe: bounds time and memory before anything grows."""

    characters: int = MAX_ALL_TEXT

    def take(self, characters: int) -> None:
        """Note that a text of so many characters was made.

        Raises:
            Spent: it is too much.
        """
        self.characters -= characters + COST
        if self.characters < 0:
            raise Spent


def variable_of(part: Part) -> Variable:
    """A variable from where it is defined: an entry of `vars`, or a value in a matrix."""
    value = part.scalar
    return Variable(
        value=value,
        text=part.text or str(value),
        set_at=f"at {format_where('', part.position, ())}",
        home=part.directory,
        position=part.position,
        path=part.path,
        # What a matrix has was replaced already; what is left of `${` is meant.
        is_literal=part.path[:1] != ("vars",),
    )


def overridden(
    variables: Mapping[str, Variable], given: Mapping[str, Scalar]
) -> dict[str, Variable]:
    """Variables with values given from outside.

    A text is read like a plain value of a recipe (`8` is a number), but where the recipe has text
    it stays text. Relative paths in it start at the current directory.

    Args:
        variables: Those of the recipe.
        given: Name -> value.

    Raises:
        RecipeError: there is no such variable, or the text is a number that cannot be used.
    """
    result = dict(variables)
    for name, value in given.items():
        if name not in variables:
            raise RecipeError(_unknown(name, variables), where=f"--var {shorten(name)}")
        if not _is_sayable(value):
            raise RecipeError(
                "needs text without control characters, a finite number or a boolean",
                where=f"--var {name}",
            )
        old = variables[name]
        stays_text = isinstance(old.value, str) and OPENING not in old.value
        read: Scalar = value
        if isinstance(value, str) and not stays_text:
            try:
                read = resolve_plain(value)
            except ValueError as error:
                raise RecipeError(str(error), where=f"--var {name}") from None
        result[name] = replace(
            old,
            value=read,
            text=value if isinstance(value, str) else str(value),
            set_at="with `--var`",
            home=Path(),
            is_literal=True,
        )
    return result


def _is_sayable(value: object) -> bool:
    """Whether a recipe could have this value; anything may come from a program."""
    match value:
        case bool():
            return True
        case int():
            return -INTEGER_LIMIT <= value < INTEGER_LIMIT
        case float():
            return math.isfinite(value)
        case str():
            return not _NOT_IN_TEXT.search(value)
        case _:
            return False


@dataclass(slots=True, kw_only=True)
class Scope:
    """The variables that may be used at some place.

    Attributes:
        variables: Name -> variable.
        problems: Where causes are collected.
        allowance: How much text may still be made.
        combination: The values of the matrices that it is within, in words.
    """

    variables: Mapping[str, Variable]
    problems: list[Problem]
    allowance: Allowance
    combination: str = ""
    _known: dict[str, Variable | None] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def within(self, combination: Mapping[str, Part], label: str) -> Scope:
        """The scope with the values of a combination of a matrix, which come first."""
        own = {name: variable_of(part) for name, part in combination.items()}
        return Scope(
            variables=ChainMap(own, self.variables),  # type: ignore[arg-type]  # only read
            problems=self.problems,
            allowance=self.allowance,
            combination=label,
        )

    def replaced(self, part: Part) -> Part:
        """A copy of a part with all variables replaced; what cannot be is a problem.

        Raises:
            Spent: the texts get too long.
        """
        match part.content:
            case dict() as entries:
                content = {name: self.replaced(inner) for name, inner in entries.items()}
                return replace(part, content=content)
            case list() as items:
                return replace(part, content=[self.replaced(inner) for inner in items])
            case str() as text if OPENING in text:
                return self._replaced_text(part, text)
            case _:
                return part

    def _replaced_text(self, part: Part, text: str) -> Part:
        made = self._value(text, part.position, part.path)
        if made is None:
            return part
        value, shown, used = made
        note = ", ".join(
            f"`${{{name}}}` is set {variable.set_at}"
            for name, variable in list(used.items())[:MAX_NOTED]
        )
        first = _TOKEN.match(text)
        leading = used.get(first[1]) if first and first[1] else None
        return replace(
            part,
            content=value,
            text="" if isinstance(value, str) else shown,
            home=leading.home if leading else part.home,
            note=note,
        )

    def _value(
        self, text: str, position: Position, path: KeyPath
    ) -> tuple[Scalar, str, dict[str, Variable]] | None:
        """(value, as it is written, variables in it) of a text; None after a problem."""
        used: dict[str, Variable] = {}
        for token in _TOKEN.finditer(text):
            if token[0] == "$${" or token[1] in used:
                continue
            if token[1] is None:
                self._problem(position, path, token[0], lambda: _malformed(text))
                return None
            variable = self._resolved(token[1], position, path)
            if variable is None:
                return None
            used[token[1]] = variable
        whole = _TOKEN.fullmatch(text)
        if whole and whole[1]:
            variable = used[whole[1]]
            self.allowance.take(len(variable.text))
            return variable.value, variable.text, used
        length = len(text) + sum(
            len(used[token[1]].text) for token in _TOKEN.finditer(text) if token[1]
        )
        if length > MAX_TEXT:
            message = f"the text gets longer than {MAX_TEXT:,} characters"
            self._problem(position, path, "long", lambda: message)
            return None
        self.allowance.take(length)
        result = _TOKEN.sub(lambda token: used[token[1]].text if token[1] else OPENING, text)
        return result, result, used

    def _resolved(self, name: str, position: Position, path: KeyPath) -> Variable | None:
        """A variable with the variables in it replaced; None after a problem."""
        if name in self._known:
            return self._known[name]
        variable = self.variables.get(name)
        if variable is None:
            self._problem(position, path, name, lambda: _unknown(name, self.variables))
            return None
        if variable.value is None:
            defined = format_where("", variable.position, ())
            self._problem(
                position,
                path,
                name,
                lambda: f"the variable `{name}` has no value (it is named at {defined})",
                hint=f"give it one with `--var {name}=...`",
            )
            return None
        if name in self._open:
            circle = [*self._open[self._open.index(name) :], name]
            self._problem(variable.position, variable.path, "circle", lambda: _circle(circle))
            return None
        if len(self._open) == MAX_DEEP:
            message = f"variables refer to each other more than {MAX_DEEP} deep"
            self._problem(variable.position, variable.path, "deep", lambda: message)
            return None
        self._open.append(name)
        self._known[name] = self._filled(variable)
        self._open.pop()
        return self._known[name]

    def _filled(self, variable: Variable) -> Variable | None:
        value = variable.value
        if variable.is_literal or not isinstance(value, str) or OPENING not in value:
            return variable
        made = self._value(value, variable.position, variable.path)
        if made is None:
            return None
        value, text, used = made
        first = _TOKEN.match(str(variable.value))
        home = used[first[1]].home if first and first[1] else variable.home
        return replace(variable, value=value, text=text, home=home)

    def _problem(
        self,
        position: Position,
        path: KeyPath,
        kind: str,
        text: Callable[[], str],
        hint: str = "",
    ) -> None:
        self.problems.append(
            Problem(
                position=position,
                path=path,
                text=text,
                hint=hint,
                kind=kind,
                combination=self.combination,
            )
        )


def _circle(names: list[str]) -> str:
    return f"variables refer to each other in a circle: {' -> '.join(f'`{n}`' for n in names)}"


def _unknown(name: str, variables: Mapping[str, Variable]) -> str:
    from pipeline.recipe.wording import nearest

    shown = shorten(name)
    names = list(itertools.islice(variables, MAX_NAMED))
    if not names:
        return f"there is no variable `{shown}`; the recipe defines none (they go under `vars`)"
    if meant := nearest(name, names):
        return f"there is no variable `{shown}` - did you mean `{meant}`?"
    return f"there is no variable `{shown}`; known here: {', '.join(f'`{n}`' for n in names)}"


def _malformed(text: str) -> str:
    start = next(token.start() for token in _TOKEN.finditer(text) if token[0] == OPENING)
    return (
        f"`{shorten(text[start:])}` is no variable: write `${{name}}` in lower-case letters, digits "
        "and `_`, or `$${` for the text `${`"
    )
