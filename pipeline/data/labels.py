"""The checkpoint's classes, and labels of the data in their terms.

A label that is mapped wrongly costs nothing but the truth: every score is then too low, for the
checkpoint and for what is made of it alike. So names must be the checkpoint's own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.data.prepare.base import describe
from pipeline.data.rows import ClassValue, listed
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.rows import Row

DEFAULT_CLASSES = 2
"""What transformers assumes of a `config.json` without `id2label`, and does not write into it."""

_GENERIC = re.compile(r"LABEL_\d+")
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(slots=True)
class Classes:
    """The classes that the checkpoint's head tells apart.

    Attributes:
        names: In the order of its output.
        is_generic: They are `LABEL_0`, `LABEL_1`, ...: nobody has named them.
        unknown: Names that were read and are not the checkpoint's, with the place of the first.
    """

    names: tuple[str, ...]
    is_generic: bool
    unknown: dict[str, str] = field(default_factory=dict)

    def read(self, row: Row, column: str) -> int | None:
        """The class in a column; None when it is empty, or its name is unknown (see `check`).

        Raises:
            StageError: when it is neither a name nor the number of a class.
        """
        return self.find(row.values[column], row.where, column)

    def find(self, value: object, where: str, column: str) -> int | None:
        """The number of a class that is given by name or number.

        Raises:
            StageError: when it is neither.
        """
        if isinstance(value, ClassValue):
            value = value.number if self.is_generic else value.name
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self._find_name(value, where, column)
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise StageError(
                f"column `{column}` holds {describe(value)}, a class is a name or a whole number",
                where=where,
            )
        self._require_one_meaning(number, where, column)
        if not 0 <= number < len(self.names):
            raise StageError(
                f"column `{column}` holds class {number}, the checkpoint has the classes 0 to "
                f"{len(self.names) - 1}",
                where=where,
                hint="leave the label of an unlabelled row empty (JSON: null)"
                if number == -1
                else "",
            )
        return number

    @property
    def _misnumbered(self) -> int | None:
        """A class whose name is another number than its own: five stars are often class 4."""
        for number, name in enumerate(self.names):
            if _INTEGER.fullmatch(name) and int(name) != number:
                return number
        return None

    def _require_one_meaning(self, number: int, where: str, column: str) -> None:
        place = self._misnumbered
        if place is not None:
            raise StageError(
                f"column `{column}` holds the number {number}, and the checkpoint names its class "
                f"{place} `{self.names[place]}`, so that numbers may mean either",
                where=where,
                hint=f'write names as text, in JSON `"{self.names[place]}"`',
            )

    def _find_name(self, value: str, where: str, column: str) -> int | None:
        name = value.strip()
        if self.names.count(name) > 1:  # ImageNet has two classes `crane`
            raise StageError(
                f"the checkpoint has {self.names.count(name)} classes named `{name}`",
                where=where,
                hint=f"write the number of the right one into column `{column}`",
            )
        if name in self.names:
            return self.names.index(name)
        folded = [known.casefold() for known in self.names]
        if folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        if _INTEGER.fullmatch(name) and self._misnumbered is None:
            return self.find(int(name), where, column)
        self.unknown.setdefault(name, where)
        return None

    def check(self, column: str) -> None:
        """Refuse names that are not the checkpoint's, all at once.

        Raises:
            StageError: when there were any.
        """
        if not self.unknown:
            return
        hint = (
            "the checkpoint's classes have no names of their own: write labels as numbers, in "
            f"the order of its output, 0 to {len(self.names) - 1}"
            if self.is_generic
            else "write the checkpoint's names, or numbers in the order of its output, into column "
            f"`{column}`"
        )
        raise StageError(
            f"labels of the data are not classes of the checkpoint: {listed(sorted(self.unknown))}; "
            f"its classes are {listed(self.names)}",
            where=next(iter(self.unknown.values())),
            hint=hint,
        )


def read_classes(directory: Path) -> Classes:
    """The classes that `config.json` names.

    Raises:
        StageError: when the head gives a number or several classes at once instead of one class, or
            `id2label` does not number them from 0 on.
    """
    config: Mapping[str, Any] = json.loads((directory / "config.json").read_bytes())
    names = config.get("id2label")
    kind = config.get("problem_type")
    count = len(names) if isinstance(names, dict) else config.get("num_labels", DEFAULT_CLASSES)
    if kind == "regression" or count == 1:
        raise StageError(
            "the checkpoint's head gives one number, not a class, so labels have no meaning here",
            where="config.json",
            hint="leave `label` out of `data`; closeness to the checkpoint is judged without labels",
        )
    if kind == "multi_label_classification":
        raise StageError(
            "the checkpoint's head gives several classes at once, and one label is one class",
            where="config.json",
            hint="leave `label` out of `data`; closeness to the checkpoint is judged without labels",
        )
    if not isinstance(names, dict):
        return Classes(tuple(f"LABEL_{number}" for number in range(count)), is_generic=True)
    if sorted(names) != sorted(str(number) for number in range(count)):
        raise StageError(
            f"`id2label` does not number its classes 0 to {count - 1}: {listed(names)}",
            where="config.json",
        )
    ordered = tuple(str(names[str(number)]) for number in range(count))
    return Classes(ordered, is_generic=all(_GENERIC.fullmatch(name) for name in ordered))
