"""`extends`: the recipes that a recipe builds on, read and merged under it.

Mappings merge key by key, at every depth. Whatever else the extending recipe has (a value, a list,
nothing) replaces what it extends. Every part keeps the place it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.recipe.events import MAX_NODES, Document, read_document
from pipeline.recipe.parts import Part, parts_of
from pipeline.recipe.problems import Problem, format_where
from pipeline.recipe.read import decode_text, read_bytes

if TYPE_CHECKING:
    from pipeline.recipe.problems import Position

MAX_FILES = 16
"""Read for one recipe; more is a mistake."""

_NEEDS = "needs the path of a recipe, or a list of such paths"


@dataclass(slots=True, kw_only=True)
class Merged:
    """A recipe with all that it extends under it.

    Attributes:
        root: The merged document, without `extends`.
        files: All files that were read, the recipe itself first.
        problems: Causes found while reading that do not end it, such as duplicate keys.
    """

    root: Part
    files: tuple[Path, ...]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class _Reader:
    """Reads files one under the other, within one limit for all of them together."""

    nodes_left: int
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    chain: list[tuple[Path, Position]] = field(default_factory=list)  # (file, its `extends`)

    def merged(self, document: Document, path: Path) -> Part:
        """A document on top of all that it extends."""
        file = str(path)
        self.files.append(path)
        self.nodes_left -= len(document.values) + len(document.keys)
        self.problems += [
            replace(problem, position=problem.position._replace(file=file))
            for problem in document.problems
        ]
        root = parts_of(document, file)
        if not isinstance(root.content, dict):
            where = format_where(file, root.position, ())
            raise RecipeError("a recipe is a mapping of keys to values", where=where)
        extends = root.entries.pop("extends", None)
        base: Part | None = None
        for reference in [] if extends is None else _references(extends):
            inner = self._read(reference, path)
            base = inner if base is None else merge(base, inner)
        return root if base is None else merge(base, root)

    def _read(self, reference: Part, path: Path) -> Part:
        where = format_where(str(path), reference.position, reference.path)
        other = path.parent / Path(str(reference.scalar)).expanduser()
        self.chain.append((path, reference.position))
        self._require_no_circle(other, where)
        if len(self.files) >= MAX_FILES:
            raise RecipeError(f"more than {MAX_FILES} files are extended", where=where)
        try:
            content = read_bytes(other)
        except RecipeError as error:
            hint = "a relative path starts at the directory of the file it stands in"
            raise RecipeError(
                f"`{other}` cannot be extended: {error.message}", where=where, hint=hint
            ) from error
        document = read_document(decode_text(content, str(other)), str(other), self.nodes_left)
        part = self.merged(document, other)
        self.chain.pop()
        return part

    def _require_no_circle(self, other: Path, where: str) -> None:
        real = other.resolve()
        above = [path.resolve() for path, _ in self.chain]
        if real not in above:
            return
        circle = self.chain[above.index(real) :]
        steps = [
            f"`{path}` (line {position.line}, column {position.column})"
            for path, position in circle
        ]
        raise RecipeError(
            f"the recipes extend each other in a circle: {' -> '.join(steps)} -> `{circle[0][0]}`",
            where=where,
        )


def read_extended(document: Document, path: Path) -> Merged:
    """Read and merge all that a recipe extends.

    Args:
        document: The recipe itself, as read.
        path: Its file.

    Raises:
        RecipeError: a file is missing, unreadable, no YAML mapping or beyond a limit, or the files
            extend each other in a circle; with the place of the `extends` that led there.
    """
    reader = _Reader(MAX_NODES)
    root = reader.merged(document, path)
    return Merged(root=root, files=tuple(reader.files), problems=tuple(reader.problems))


def merge(base: Part, over: Part) -> Part:
    """`over` on top of `base`: mappings key by key, anything else replaced."""
    if not isinstance(base.content, dict) or not isinstance(over.content, dict):
        return over
    entries = dict(base.content)
    for name, part in over.content.items():
        entries[name] = merge(entries[name], part) if name in entries else part
    return replace(over, content=entries)


def _references(extends: Part) -> list[Part]:
    references = extends.items if isinstance(extends.content, list) else [extends]
    for reference in references or [extends]:
        if not isinstance(reference.content, str) or not reference.content:
            raise RecipeError(
                _NEEDS,
                where=format_where("", reference.position, reference.path),
                hint="such as `extends: base.yaml`",
            )
    return references
