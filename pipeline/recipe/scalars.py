"""Plain scalars of YAML as the 1.2 core schema reads them.

So `no` is text, `010` is ten, `1e-3` is a number, and `12:30:45` and `2026-01-31` are text.
Nothing but `None`, `bool`, `int`, `float` and `str` can come out.

Source: YAML 1.2.2, section 10.3.2 "Tag Resolution", https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import math
import re

INTEGER_LIMIT = 2**63
"""Whole numbers lie in [-2**63, 2**63): what JSON readers and numpy agree on."""

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_MAX_DIGITS = 400
"""Longer number texts are refused unread: Python's own conversion is quadratic."""


def resolve_plain(text: str) -> None | bool | int | float | str:
    """The value of a plain (unquoted) scalar.

    Raises:
        ValueError: for a number that JSON cannot say (`.nan`, `.inf`, `1e999`) or that does not
            fit into 64 bits. The message says so in words for the user.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        msg = f"`{text}` is not a number that a recipe can use"
        raise ValueError(msg)
    is_decimal = _DECIMAL.fullmatch(text) is not None
    if is_decimal or _BASED.fullmatch(text):
        return _integer(text, 10 if is_decimal else 0)
    if _FLOAT.fullmatch(text):
        value = math.inf if len(text) > _MAX_DIGITS else float(text)
        if math.isinf(value):
            msg = "the number is too large: it does not fit into 64 bits"
            raise ValueError(msg)
        return value
    return text


def _integer(text: str, base: int) -> int:
    value = INTEGER_LIMIT if len(text) > _MAX_DIGITS else int(text, base)
    if not -INTEGER_LIMIT <= value < INTEGER_LIMIT:
        msg = "the whole number is too large: it does not fit into 64 bits"
        raise ValueError(msg)
    return value
