"""Writes protobuf's text format from plain data, in the order it is given.

protobuf's own writer leaves out what has its default value, and `max_batch_size: 0` must be there:
without it the server guesses one.
Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias


class Word(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


Scalar: TypeAlias = str | int | bool | Word
Value: TypeAlias = "Scalar | Message | Sequence[Scalar] | Sequence[Message]"
Message: TypeAlias = Mapping[str, Value]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def write_message(message: Message, *, comment: str = "") -> str:
    """A message as text, with a comment above it.

    Args:
        message: Field -> value; a sequence of messages is that field several times.
        comment: Lines, without the `#`.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*lines, *_fields(message, "")]) + "\n"


def map_entries(entries: Mapping[str, Value]) -> list[Message]:
    """What a `map<string, ...>` field is in text format: a message for each entry."""
    return [{"key": key, "value": value} for key, value in entries.items()]


def _fields(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value, indent)
        elif isinstance(value, str | int):
            yield f"{indent}{name}: {_scalar(value)}"
        elif all(isinstance(item, Mapping) for item in value):
            for item in value:
                assert isinstance(item, Mapping)
                yield from _block(name, item, indent)
        else:
            items = ", ".join(_scalar(item) for item in value if isinstance(item, str | int))
            yield f"{indent}{name}: [ {items} ]"


def _block(name: str, message: Message, indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _fields(message, f"{indent}  ")
    yield f"{indent}}}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(_escaped(char) for char in value) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\{ord(char):03o}" if ord(char) < 32 or ord(char) == 127 else char
