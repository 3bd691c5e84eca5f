"""ruamel's syntax errors in words for the user, with the place where to look."""

from __future__ import annotations

import re
import sys

from pipeline.errors import RecipeError
from pipeline.recipe.problems import Position, format_where, shorten

_QUOTE = "put the text in quotes"

# Part of ruamel's context or problem -> ours, and a hint. First match wins. Texts of ruamel.yaml
# 0.19.1.
_SYNTAX: tuple[tuple[str, str, str], ...] = (
    ("while parsing a tag", "this begins a tag; tags are not part of recipes", _QUOTE),
    ("while scanning an anchor", "this begins an anchor; a recipe has none", _QUOTE),
    ("while scanning an alias", "this begins an alias; a recipe has none", _QUOTE),
    (
        "while scanning a block scalar",
        "this begins a block of text, and cannot stand here",
        _QUOTE,
    ),
    ("found character '\\t'", "a tab cannot stand here", "indent with spaces"),
    (
        "mapping values are not allowed here",
        "a `:` cannot stand here",
        "indent the line like its neighbours, or put text with `: ` in it in quotes",
    ),
    (
        "could not find expected ':'",
        "this line is no `key: value`",
        "put a `:` and a space behind the key",
    ),
    (
        "found unexpected end of stream",
        "the quote that opens here is never closed",
        "close it",
    ),
    (
        "found unexpected document separator",
        "the quote that opens here is never closed",
        "close it",
    ),
    ("unknown escape character", "unknown escape in double quotes", "use single quotes"),
    ("expected escape sequence of", "unknown escape in double quotes", "use single quotes"),
    ("expected ',' or ']'", "the list in brackets ends wrongly", "`[a, b]` needs `,` and `]`"),
    (
        "expected ',' or '}'",
        "the mapping in braces ends wrongly",
        "`{a: 1, b: 2}` needs `,` and `}`",
    ),
    (
        "expected <block end>",
        "this does not line up with what is around it",
        "indent the keys of one mapping, or the items of one list, alike",
    ),
    ("expected '<document start>'", "something follows the end of the document", ""),
    ("did not find expected", "this cannot stand here", ""),
    ("expected the node content", "a value is missing here", ""),
    ("sequence entries are not allowed", "a list item `- ` cannot stand here", ""),
    ("mapping keys are not allowed", "a key cannot stand here", ""),
    ("cannot start any token", "this character cannot start a value", _QUOTE),
)

_OF_BRACES = frozenset({"expected ',' or ']'", "expected ',' or '}'", "did not find expected"})
_QUOTE_VARIABLES = "within braces and brackets, put text with `${name}` in quotes"

_OPENING_CONTEXTS = (
    "while parsing a tag",
    "while scanning an a",
    "while scanning a block scalar",
    "while scanning a quoted scalar",
    "while scanning a simple key",
    "while parsing a flow",
)
"""Problems that are found at the end, and belong where a quote, a key or a bracket began."""


def explain_syntax(error: Exception, text: str, file: str) -> RecipeError:
    """What to tell the user about an exception of the YAML parser.

    Args:
        error: A `YAMLError`, or what Python raises for an escape that is no character.
        text: The whole text.
        file: How messages call the file.
    """
    # Imported by then: the error comes from there.
    from ruamel.yaml.error import YAMLError

    if not isinstance(error, YAMLError):
        return _error(file, _no_character(text), "an escape stands for no character", "")
    problem = str(getattr(error, "problem", None) or error)
    context = str(getattr(error, "context", None) or "")
    mark = getattr(error, "problem_mark", None)
    if context.startswith(_OPENING_CONTEXTS) or mark is None:
        mark = getattr(error, "context_mark", None) or mark
    position = (
        Position(mark.line + 1, mark.column + 1)
        if mark is not None
        else Position(text.count("\n") + 1, 1)
    )
    for part, message, hint in _SYNTAX:
        if part in context or part in problem:
            line = text.split("\n")[position.line - 1 : position.line]
            if part in _OF_BRACES and "${" in "".join(line):
                hint = _QUOTE_VARIABLES  # noqa: PLW2901 - a better one
            return _error(file, position, message, hint)
    return _error(file, position, shorten(problem.splitlines()[0]), "")


def _no_character(text: str) -> Position:
    """The place of the first escape beyond the last character of Unicode."""
    for escape in re.finditer(r"\\U([0-9a-fA-F]{8})", text):
        if int(escape.group(1), 16) > sys.maxunicode:
            lines = text[: escape.start()].splitlines() or [""]
            return Position(len(lines), len(lines[-1]) + 1)
    return Position(1, 1)


def _error(file: str, position: Position, message: str, hint: str) -> RecipeError:
    where = format_where(file, position, ())
    return RecipeError(f"not valid YAML: {message}", where=where, hint=hint)
