"""The bytes of a recipe file as text, or a clear reason why they are none."""

from __future__ import annotations

import codecs
import re
import stat
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.recipe.problems import Position, format_where

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 * 1024
"""No recipe written by a person comes near this."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "UTF-8 with a byte order mark",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# What YAML calls non-printable (1.2.2, section 5.1), and the marks that no editor shows.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")

_SAVE_AS_UTF8 = "save it as UTF-8 without a byte order mark"


def read_bytes(path: Path) -> bytes:
    """The content of a recipe file.

    Raises:
        RecipeError: when it is missing, not a regular file, unreadable, empty or too large.
    """
    file = str(path)
    try:
        # A FIFO or a device would block, or never end: look before opening.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RecipeError(
                "this is a directory, not a recipe", where=file, hint=_recipes_inside(path)
            )
        if not stat.S_ISREG(mode):
            raise RecipeError("this is not a regular file", where=file)
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as err:
        raise RecipeError("there is no such file", where=file) from err
    except (OSError, ValueError) as err:  # ValueError: a NUL in the path
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise RecipeError(f"cannot be read: {reason}", where=file) from err
    if len(content) > MAX_BYTES:
        raise RecipeError(f"a recipe has at most {MAX_BYTES // 1024} KiB", where=file)
    return content


def decode_text(content: bytes, file: str) -> str:
    """The text of a recipe file.

    Args:
        content: All bytes of the file.
        file: How messages call the file.

    Raises:
        RecipeError: when it is not UTF-8 text, or has characters that YAML does not allow.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise RecipeError(
                f"the file is {encoding}; a recipe is UTF-8", where=file, hint=_SAVE_AS_UTF8
            )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as err:
        position = _position(content[: err.start].decode("utf-8"))
        raise RecipeError(
            f"not UTF-8 text: byte 0x{content[err.start]:02x} cannot stand here",
            where=format_where(file, position, ()),
            hint=_SAVE_AS_UTF8,
        ) from err
    if bad := _NOT_TEXT.search(text):
        raise RecipeError(
            f"not text: character U+{ord(bad.group()):04X} cannot stand in a recipe",
            where=format_where(file, _position(text[: bad.start()]), ()),
        )
    return text


def _position(before: str) -> Position:
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Position(len(lines), len(lines[-1]) + 1)


def _recipes_inside(directory: Path) -> str:
    try:
        found = sorted(directory.glob("*.yaml"))
    except OSError:
        return ""  # the hint is a courtesy; the error itself stands
    return f"give a file, such as `{found[0]}`" if found else ""
