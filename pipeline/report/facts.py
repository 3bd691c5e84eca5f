"""Reads the free-form facts of a stage: data of unknown shape, so nothing here can fail.

A key that is missing, or holds something else than expected, reads as nothing; whatever was not
asked for by name is still shown, as flat rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report import figures

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

STEP = " \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} "
"""Between the keys of a path."""

MAX_ROWS = 200
"""Of one flat table."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A mapping of unknown shape, read by type."""

    values: Mapping[str, object]

    def number(self, key: str) -> float | None:
        """The finite number under `key`, or None."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    def text(self, key: str) -> str:
        """The scalar under `key` as text, or an empty string."""
        value = self.values.get(key)
        return "" if value is None or isinstance(value, dict | list | tuple) else scalar(value)

    def cell(self, key: str) -> str:
        """What stands under `key` in one table cell: a scalar, or a list on one line."""
        value = self.values.get(key)
        if isinstance(value, list | tuple):
            return ", ".join(scalar(item) for item in value)
        return self.text(key)

    def child(self, key: str) -> Facts:
        """The mapping under `key`, or an empty one."""
        value = self.values.get(key)
        return Facts(value) if isinstance(value, dict) else Facts({})

    def children(self) -> tuple[tuple[str, Facts], ...]:
        """All mappings in it, with their keys."""
        return tuple((k, Facts(v)) for k, v in self.values.items() if isinstance(v, dict))

    def numbers(self) -> tuple[tuple[str, float], ...]:
        """All finite numbers in it, the largest first."""
        found = [(key, self.number(key)) for key in self.values]
        kept = [(key, value) for key, value in found if value is not None]
        return tuple(sorted(kept, key=lambda pair: (-pair[1], pair[0])))

    def records(self, key: str) -> tuple[Facts, ...]:
        """The mappings of the list under `key`."""
        value = self.values.get(key)
        if not isinstance(value, list | tuple):
            return ()
        return tuple(Facts(item) for item in value if isinstance(item, dict))

    def rows(self, known: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """Everything but the `known` keys as (path, text), at most `MAX_ROWS` rows."""
        rest = {key: value for key, value in self.values.items() if key not in known}
        rows: list[tuple[str, str]] = []
        for row in _flat("", rest):
            if len(rows) == MAX_ROWS:
                rows.append(("…", "the rest is in report.json"))
                break
            rows.append(row)
        return tuple(rows)


def scalar(value: object) -> str:
    """One value that is no list and no mapping, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figures.figure(value, 6)
    return figures.NONE if value is None else str(value)


def _flat(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{path}{STEP}{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        if any(isinstance(item, dict | list | tuple) for item in value):
            for place, item in enumerate(value):
                yield from _flat(f"{path}{STEP}{place + 1}", item)
        else:
            yield path, ", ".join(scalar(item) for item in value) or "none"
    else:
        yield path, _by_unit(path, value)


def _by_unit(path: str, value: object) -> str:
    """A number whose key names its unit is shown in that unit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if path.endswith("_bytes"):
            return figures.size(value)
        if path.endswith("_ms"):
            return figures.milliseconds(value)
        if path.endswith("_mib"):
            return figures.mebibytes(value)
    return scalar(value)
