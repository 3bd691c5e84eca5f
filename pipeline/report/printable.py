"""Makes every string of a report fit to be shown, before any renderer sees it.

Names, texts and facts come from checkpoints, data sets, tools and crashed processes: they are
hostile until proven otherwise. Escaping for a format is the renderer's work; what is done here is
the same for all: no terminal escapes, no control characters, no text that runs backwards, nothing
of unbounded size.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.report.schema import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.report.schema import TargetReport

MAX_CHARACTERS = 600
"""Of one string; a 1 MB tensor name tells a reader no more than its beginning."""

MAX_IMAGE_CHARACTERS = 200_000
"""Of a picture as a `data:` URI; a longer one is left out."""

MAX_ITEMS = 4000
"""Of one free-form list or mapping, such as an engine's layers."""

MAX_DEPTH = 12
"""Of free-form facts; what lies deeper is in `report.json`."""

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
"""The one form of a picture that is shown."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# ECMA-48: CSI, the string sequences (OSC, DCS, PM, APC) when they end, and two-byte escapes.
ANSI_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-Z\\^-~]"
)

# What XML 1.0 forbids (controls, surrogates, non-characters), C1 controls, and the bidirectional
# controls with which a name can be shown in another order than it is written (CVE-2021-42574).
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff]"
)


def printable_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text without escapes and control characters, at most about `limit` characters long.

    Newlines and tabs stay; a cut says how much is missing.
    """
    cut = len(text) - limit
    # Clip first: the patterns then never run over megabytes.
    shown = text[:limit] if cut > 0 else text
    shown = shown.replace("\r\n", "\n").replace("\r", "\n")
    shown = UNPRINTABLE.sub(REPLACEMENT, ANSI_SEQUENCE.sub("", shown))
    if text and not shown:  # nothing but escapes: a name must not vanish
        shown = REPLACEMENT
    return f"{shown} … ({cut:,} more characters)" if cut > 0 else shown


def printable(report: Report) -> Report:
    """The same report with every string, key and free-form value fit to be shown.

    The metrics of single samples are left out: no form shows them, and there are many.
    """
    targets = tuple(_without_samples(target) for target in report.targets)
    light = report.model_copy(update={"targets": targets})
    shown = Report.model_validate(_printable(light.model_dump(), 0))
    samples = (
        sample.model_copy(update={"image": _picture(recorded.image)})
        for sample, recorded in zip(shown.worst_samples, report.worst_samples, strict=False)
    )
    return shown.model_copy(update={"worst_samples": tuple(samples)})


def _picture(uri: str) -> str:
    """The picture as it is, or nothing: one that is cut shows nothing."""
    is_shown = len(uri) <= MAX_IMAGE_CHARACTERS and PICTURE.fullmatch(uri)
    return uri if is_shown else ""


def _without_samples(target: TargetReport) -> TargetReport:
    links = []
    for link in target.parity:
        if link.parity is None:
            links.append(link)
            continue
        outputs = tuple(o.model_copy(update={"samples": ()}) for o in link.parity.outputs)
        parity = link.parity.model_copy(update={"outputs": outputs})
        links.append(link.model_copy(update={"parity": parity}))
    return target.model_copy(update={"parity": tuple(links)})


def _printable(value: object, depth: int) -> object:
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, dict):
        return _printable_mapping(value, depth)
    if isinstance(value, list | tuple):
        if depth > MAX_DEPTH:
            return []
        return [_printable(item, depth + 1) for item in value[:MAX_ITEMS]]
    return value


def _printable_mapping(value: Mapping[object, object], depth: int) -> dict[str, object]:
    shown: dict[str, object] = {}
    if depth > MAX_DEPTH:
        return shown
    for key, item in list(value.items())[:MAX_ITEMS]:
        name = unique = printable_text(str(key))
        count = 1
        while unique in shown:  # two keys may differ only in what was cut off
            count += 1
            unique = f"{name} ({count})"
        shown[unique] = _printable(item, depth + 1)
    return shown
