"""A document as a tree of parts, each with its place: what merging and expanding work on.

A `Document` has its places by key path, which suits checks; a `Part` carries its own place, so that
it can be moved, merged and copied without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipeline.recipe.events import Document, Origin, Value

if TYPE_CHECKING:
    from pipeline.recipe.problems import KeyPath, Position, Problem

Scalar: TypeAlias = "None | bool | int | float | str"


@dataclass(slots=True, kw_only=True)
class Part:
    """A value of a recipe: a scalar, or a mapping or list of further parts.

    Attributes:
        content: The value.
        position: Where it stands, with the file.
        key: Where its key stands; None for items of lists, and for the root.
        path: Its key path in the file.
        text: How a number, a boolean or nothing is written.
        home: Where relative paths in it start, when that is not the file's directory.
        note: Where the variables in it are set, in words.
        combination: The values of the matrices that it was made with, where it was.
    """

    content: Scalar | dict[str, Part] | list[Part]
    position: Position
    key: Position | None
    path: KeyPath
    text: str = ""
    home: Path | None = None
    note: str = ""
    combination: str = ""

    @property
    def entries(self) -> dict[str, Part]:
        """The parts of a mapping; none for anything else."""
        return self.content if isinstance(self.content, dict) else {}

    @property
    def items(self) -> list[Part]:
        """The parts of a list; none for anything else."""
        return self.content if isinstance(self.content, list) else []

    @property
    def scalar(self) -> Scalar:
        """The value of a part that is known to be no mapping and no list."""
        assert not isinstance(self.content, dict | list)
        return self.content

    @property
    def directory(self) -> Path:
        """Where relative paths in it start."""
        return self.home if self.home is not None else Path(self.position.file).parent


def parts_of(document: Document, file: str) -> Part:
    """A document that was read from a file, as parts."""

    def part(value: Value, path: KeyPath) -> Part:
        key = document.keys.get(path)
        content: Scalar | dict[str, Part] | list[Part]
        match value:
            case dict():
                content = {name: part(inner, (*path, name)) for name, inner in value.items()}
            case list():
                content = [part(inner, (*path, place)) for place, inner in enumerate(value)]
            case _:
                content = value
        return Part(
            content=content,
            position=document.values[path]._replace(file=file),
            key=None if key is None else key._replace(file=file),
            path=path,
            text=document.texts.get(path, ""),
        )

    return part(document.value, ())


def document_of(root: Part, problems: tuple[Problem, ...] = ()) -> Document:
    """Parts as a document, with key paths of their own and origins where these are others."""
    keys: dict[KeyPath, Position] = {}
    values: dict[KeyPath, Position] = {}
    texts: dict[KeyPath, str] = {}
    origins: dict[KeyPath, Origin] = {}

    def flat(part: Part, path: KeyPath, combination: str) -> Value:
        combination = part.combination or combination
        values[path] = part.position
        origins[path] = Origin(
            path=part.path, note=part.note, combination=combination, home=part.home
        )
        if part.key is not None:
            keys[path] = part.key
        if part.text:
            texts[path] = part.text
        match part.content:
            case dict() as entries:
                return {
                    name: flat(inner, (*path, name), combination)
                    for name, inner in entries.items()
                }
            case list() as items:
                return [
                    flat(inner, (*path, place), combination) for place, inner in enumerate(items)
                ]
            case scalar:
                return scalar

    return Document(
        value=flat(root, (), ""),
        keys=keys,
        values=values,
        texts=texts,
        problems=problems,
        origins=origins,
    )


def count(part: Part) -> int:
    """How many values there are, the part itself among them."""
    inner = part.entries.values() if isinstance(part.content, dict) else part.items
    return 1 + sum(count(each) for each in inner)
