"""The scripts that draw the charts of `report.html`: Vega, from files of this package.

They stand in the page itself, so it needs no network; the page's policy names their digests, so
that no other script can run. Vega evaluates its expressions with an interpreter, without `eval`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VENDOR = "vendor"
"""Files as their npm packages hold them; `versions.json` says which, with digests."""

INTERPRETER_LINES = {
    "import { ascending, isString, DisallowedObjectProperties } from 'vega-util';": (
        "const { ascending, isString, DisallowedObjectProperties } = vega;"
    ),
    "export { expression as expressionInterpreter };": "return { expressionInterpreter: expression };",
}
"""The interpreter is a module, and a module of a page cannot import from its other scripts."""

SOURCE_MAP = "//# sourceMappingURL="


@dataclass(frozen=True, slots=True)
class Scripts:
    """What a page with charts holds.

    Attributes:
        texts: The scripts, in the order in which they run.
        policy: Their digests, as a content security policy lists them.
    """

    texts: tuple[str, ...]
    policy: str


@functools.cache
def load_scripts() -> Scripts:
    """Read the scripts; their licences stand before them.

    Raises:
        ValueError: when a file is not one that can stand in a page.
    """
    interpreter = _read(VENDOR, "vega-interpreter.js")
    for line, plain in INTERPRETER_LINES.items():
        if interpreter.count(line) != 1:
            raise ValueError(f"vega-interpreter.js does not have the line {line}")
        interpreter = interpreter.replace(line, plain)
    raw = (
        f"/*\n{_read(VENDOR, 'LICENSE')}*/\n{_read(VENDOR, 'vega.min.js')}",
        _read(VENDOR, "vega-lite.min.js"),
        f"const vegaInterpreter = (() => {{\n{interpreter}\n}})();\n",
        _read("templates", "draw.js"),
    )
    texts = tuple(_without_source_map(text) for text in raw)
    for text in texts:
        if "</script" in text.lower() or "<!--" in text or "\r" in text:
            raise ValueError("a script of the report cannot stand in a page")
    return Scripts(texts=texts, policy=" ".join(f"'sha256-{_digest(text)}'" for text in texts))


def _read(*path: str) -> str:
    return importlib.resources.files("pipeline.report").joinpath(*path).read_text(encoding="utf-8")


def _without_source_map(text: str) -> str:
    """Without the line that would make a browser's tools look for another file."""
    return "\n".join(line for line in text.split("\n") if not line.startswith(SOURCE_MAP))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def script_data(values: Mapping[str, object]) -> str:
    """JSON that cannot end the script element it stands in (HTML Standard, 4.12.1.3).

    Raises:
        ValueError: when a number is not finite.
    """
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
