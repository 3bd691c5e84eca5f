"""YAML text -> JSON value with the place of every key and value, built from parser events.

Only the events of ruamel's pure Python parser are used: no composer, no constructor, no resolver.
So no alias can multiply anything, no tag can make an object, and limits hold while reading, before
anything large exists. What a recipe may not use (aliases, anchors, tags, merge keys, directives,
several documents) ends the reading at once; what can be told apart from the rest (a duplicate key,
a number that JSON cannot say) is collected, so that one run lists it with all other causes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import RecipeError
from pipeline.recipe.problems import KeyPath, Position, Problem, format_where, shorten
from pipeline.recipe.scalars import resolve_plain
from pipeline.recipe.syntax import explain_syntax

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ruamel.yaml.error import StringMark
    from ruamel.yaml.events import Event, NodeEvent, ScalarEvent

MAX_DEPTH = 20
"""Of nested mappings and lists."""

MAX_NODES = 5_000
"""Keys and values together. The parser takes about 60 microseconds for each, and a recipe has below 500."""

Value: TypeAlias = "None | bool | int | float | str | list[Value] | dict[str, Value]"
"""What comes out: JSON types only."""

_ONE_DOCUMENT = "a recipe is one YAML document"
_NO_KEY = object()

# A directive can only stand before the first content line. ruamel reads all of them before its
# first event, so they are looked for here.
_DIRECTIVE = re.compile(r"\A(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))*(%)")

# What a double-quoted scalar can smuggle past the check of the characters of the file.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What became of a value on its way from a file into a recipe.

    Attributes:
        path: Its key path in the file; a matrix makes several targets out of one.
        note: Where the variables in it are set, in words; empty without any.
        combination: The values of the matrices that it was made with, such as `model=a, n=1`.
        home: Where relative paths in it start, when that is not the directory of its file.
    """

    path: KeyPath
    note: str = ""
    combination: str = ""
    home: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A YAML document as a JSON value, and where each part of it stands.

    Attributes:
        value: The root.
        keys: Key path -> place of the key; lists' items have none.
        values: Key path -> place of the value; the root's key path is empty.
        texts: Key path -> how a number, a boolean or nothing is written.
        problems: Causes found while reading. A duplicate keeps its first value.
        origins: Key path -> what became of the value, where that is not just what was read.
    """

    value: Value
    keys: Mapping[KeyPath, Position]
    values: Mapping[KeyPath, Position]
    texts: Mapping[KeyPath, str]
    problems: tuple[Problem, ...]
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Origin:
        """What became of the value at `path`, or of the nearest thing around it."""
        known = path
        while known and known not in self.origins:
            known = known[:-1]
        if known not in self.origins:
            return Origin(path=path)
        origin = self.origins[known]
        return replace(origin, path=(*origin.path, *path[len(known) :]))

    def position(self, path: KeyPath) -> Position:
        """Where to look for `path`: a scalar or an item itself, else the key (nothing has no place).

        A path that is not in the document leads to the nearest thing around it.
        """
        while path and path not in self.values:
            path = path[:-1]
        value = self.at(path)
        if (value is None or isinstance(value, dict | list)) and path in self.keys:
            return self.keys[path]
        return self.values[path]

    def at(self, path: KeyPath) -> Value:
        """The value at a path of the document.

        Raises:
            KeyError: when there is no such path.
        """
        value = self.value
        for item in path:
            match value, item:
                case dict(), str():
                    value = value[item]
                case list(), int() if 0 <= item < len(value):
                    value = value[item]
                case _:
                    raise KeyError(path)
        return value


def read_document(text: str, file: str, max_nodes: int = MAX_NODES) -> Document:
    """Read one YAML document within the limits.

    Args:
        text: Checked to hold only characters that YAML allows.
        file: How messages call the file.
        max_nodes: How many keys and values it may have.

    Raises:
        RecipeError: when it is empty, not YAML, beyond a limit, or uses what recipes may not.
    """
    if directive := _DIRECTIVE.match(text):
        line = text.count("\n", 0, directive.start(1)) + 1
        raise _refusal(file, Position(line, 1), "YAML directives are not part of recipes")
    builder = _Builder(file, max_nodes)
    for event in _events(text, file):
        builder.take(event)
    return builder.document()


def _events(text: str, file: str) -> Iterator[Event]:
    # ruamel takes 30 ms to import: only where a recipe is really read.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except (YAMLError, ValueError, OverflowError) as err:  # the last two: "\UFFFFFFFF"
        raise explain_syntax(err, text, file) from err


@dataclass(slots=True, kw_only=True)
class _Frame:
    """A mapping or list that is being filled."""

    value: dict[str, Value] | list[Value]
    path: KeyPath
    is_discarded: bool
    key: str | object = _NO_KEY  # of a mapping: read, and waiting for its value
    repeats_key: bool = False


@dataclass(slots=True)
class _Builder:
    """Takes parser events one by one; holds the document as far as it is read."""

    file: str
    max_nodes: int
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    values: dict[KeyPath, Position] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    frames: list[_Frame] = field(default_factory=list)
    root: Value = None
    documents: int = 0
    nodes: int = 0

    def take(self, event: Event) -> None:
        """Check one event and add what it stands for."""
        # Imported by then: the event comes from there.
        from ruamel.yaml import events

        match event:
            case events.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise self._refused(event, "a second document starts here", _ONE_DOCUMENT)
            case events.AliasEvent():
                message = f"aliases (`*{shorten(event.anchor)}`) are not part of recipes"
                raise self._refused(event, message, "write the value out")
            case events.NodeEvent():
                self._take_node(event)
            case events.CollectionEndEvent():
                self.frames.pop()

    def document(self) -> Document:
        """What was read."""
        if not self.values:
            raise RecipeError(
                "the file is empty", where=self.file, hint="start it with `recipe: 1`"
            )
        return Document(
            value=self.root,
            keys=self.keys,
            values=self.values,
            texts=self.texts,
            problems=tuple(self.problems),
        )

    def _take_node(self, event: NodeEvent) -> None:
        from ruamel.yaml.events import CollectionStartEvent, MappingStartEvent, ScalarEvent

        assert isinstance(event, ScalarEvent | CollectionStartEvent)
        if event.anchor is not None:
            message = f"anchors (`&{shorten(event.anchor)}`) are not part of recipes"
            raise self._refused(event, message, "write the value out where it is used")
        if event.ctag is not None:
            tag = f"{event.ctag.handle or ''}{event.ctag.suffix}"
            message = f"tags (`{shorten(tag)}`) are not part of recipes"
            raise self._refused(event, message, "write the value without it")
        self.nodes += 1
        if self.nodes > self.max_nodes:
            raise self._refused(event, f"a recipe has at most {MAX_NODES:,} keys and values")

        frame = self.frames[-1] if self.frames else None
        expects_key = frame is not None and isinstance(frame.value, dict) and frame.key is _NO_KEY
        if isinstance(event, ScalarEvent):
            if expects_key:
                self._take_key(event)
            else:
                path = self._path(frame)
                scalar = self._scalar(event, path, frame)
                self._place(frame, path, scalar, _position(event.start_mark))
            return
        value: dict[str, Value] | list[Value] = {} if isinstance(event, MappingStartEvent) else []
        if expects_key:
            kind = "mapping" if isinstance(value, dict) else "list"
            raise self._refused(event, f"a key must be text, not a {kind}")
        if len(self.frames) == MAX_DEPTH:
            raise self._refused(event, f"nested more than {MAX_DEPTH} deep")
        path = self._path(frame)
        is_discarded = frame is not None and (frame.is_discarded or frame.repeats_key)
        self._place(frame, path, value, _position(event.start_mark))
        self.frames.append(_Frame(value=value, path=path, is_discarded=is_discarded))

    def _take_key(self, event: ScalarEvent) -> None:
        frame = self.frames[-1]
        if event.value == "<<" and event.style is None:
            raise self._refused(event, "merge keys (`<<`) are not part of recipes")
        key = self._text(event)
        path, position = (*frame.path, key), _position(event.start_mark)
        frame.key = key
        frame.repeats_key = key in frame.value
        if frame.is_discarded:
            return
        if frame.repeats_key:
            line, column, _ = self.keys[path]
            text = f"given twice, first at line {line}, column {column}"
            self.problems.append(Problem(position=position, path=path, text=lambda: text))
        else:
            self.keys[path] = position

    def _scalar(self, event: ScalarEvent, path: KeyPath, frame: _Frame | None) -> Value:
        if event.style is not None:
            return self._text(event)
        is_discarded = frame is not None and (frame.is_discarded or frame.repeats_key)
        try:
            value = resolve_plain(event.value)
        except ValueError as err:
            text = str(err)
            position = _position(event.start_mark)
            problem = Problem(position=position, path=path, text=lambda: text, hides_value=True)
            if not is_discarded:
                self.problems.append(problem)
            return None
        if not isinstance(value, str) and not is_discarded:
            self.texts[path] = event.value
        return value

    def _text(self, event: ScalarEvent) -> str:
        """A scalar as it is written; JSON's escaped pairs of surrogates become one character."""
        text: str = event.value
        if _CONTROL.search(text):
            raise self._refused(event, "an escape stands for a control character")
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError as err:
            raise self._refused(event, "an escape stands for half a character") from err

    def _path(self, frame: _Frame | None) -> KeyPath:
        """The key path of the value that comes next."""
        if frame is None:
            return ()
        if isinstance(frame.value, list):
            return (*frame.path, len(frame.value))
        assert isinstance(frame.key, str)
        return (*frame.path, frame.key)

    def _place(
        self, frame: _Frame | None, path: KeyPath, value: Value, position: Position
    ) -> None:
        if frame is None:
            self.root = value
            is_kept = True
        elif isinstance(frame.value, list):
            frame.value.append(value)
            is_kept = not frame.is_discarded
        else:
            assert isinstance(frame.key, str)
            is_kept = not (frame.is_discarded or frame.repeats_key)
            if not frame.repeats_key:
                frame.value[frame.key] = value
            frame.key = _NO_KEY
            frame.repeats_key = False
        if is_kept:
            self.values[path] = position

    def _refused(self, event: Event, message: str, hint: str = "") -> RecipeError:
        return _refusal(self.file, _position(event.start_mark), message, hint)


def _position(mark: StringMark) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _refusal(file: str, position: Position, message: str, hint: str = "") -> RecipeError:
    return RecipeError(message, where=format_where(file, position, ()), hint=hint)
