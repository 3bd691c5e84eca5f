"""A recipe written out: what an artifact keeps of one that extends others or has a matrix."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.recipe.plain import OPENING
from pipeline.recipe.problems import shorten
from pipeline.recipe.schema import flow_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.recipe.events import Document, Value
    from pipeline.recipe.parts import Scalar

_MAX_FLOW = 90
"""Characters of a mapping or list on one line."""


def written_out(
    document: Document,
    files: Sequence[Path],
    values: Mapping[str, Scalar],
    variables: Mapping[str, Scalar],
) -> bytes:
    """A document as YAML that loads alone, and says what it was made from.

    Args:
        document: Expanded.
        files: The files it was read from; only their names are kept.
        values: The combination of its matrix.
        variables: The values given from outside.
    """
    names = ", ".join(f"`{shorten(path.name)}`" for path in files)
    lines = [f"# Written out by convert from {names}."]
    for said, given in (("With", values), ("Given", variables)):
        if given:
            lines.append(f"# {said}: {values_text(given)}")
    lines.append("# Relative paths start where they were written.")
    return "\n".join([*lines, *_block(document.value, ""), ""]).encode()


def values_text(values: Mapping[str, Scalar]) -> str:
    """Values of variables on one line, such as `model=a, length=8`; nothing in it ends the line."""
    return ", ".join(f"{name}={shorten(flow_text(value))}" for name, value in values.items())


def _block(value: Value, indent: str) -> Iterator[str]:
    """A value over several lines where one is too short for it."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _line(f"{indent}{key}:", inner, indent)
        case list():
            for inner in value:
                yield from _line(f"{indent}-", inner, indent)
        case _:
            yield f"{indent}{_flow(value)}"


def _line(start: str, value: Value, indent: str) -> Iterator[str]:
    flow = _flow(value)
    if not value or not isinstance(value, dict | list) or len(start) + len(flow) < _MAX_FLOW:
        yield f"{start} {flow}"
    else:
        yield start
        yield from _block(value, f"{indent}  ")


def _flow(value: Value) -> str:
    """A value on one line that reads back as it is: no variable in it, no character unescaped."""
    text = flow_text(value).replace(OPENING, f"${OPENING}")
    # Outside of quotes there are only letters, digits and marks.
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
