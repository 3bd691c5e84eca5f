"""Multiple choice: a text with each of its choices, and which one is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.prepare.base import Prepared, describe, read_text
from pipeline.data.prepare.texts import TextPreparation, joined
from pipeline.data.rows import ClassValue
from pipeline.errors import StageError
from pipeline.tasks import CHOICES_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from pipeline.data.rows import Row

MIN_CHOICES = 2


class ChoicePreparation(TextPreparation):
    """A text and its choices to tokens: a row of a matrix for each choice.

    With a second text, that text is the beginning of every choice, as SWAG has it.
    """

    axes: tuple[str, ...] = (CHOICES_AXIS, SEQUENCE_AXIS)

    def prepare(self, row: Row) -> Prepared:
        """(num_choices, sequence) for each input, filled up to the longest; the right choice."""
        text, beginning = self.read_texts(row)
        choices = self._read_choices(row)
        encoded = [
            self.tokenizer.encode_with_offsets(text, f"{beginning} {c}" if beginning else c)
            for c in choices
        ]
        longest = max(len(one.parts) for one in encoded)
        tensors = {}
        for name, fill in self.tokenizer.padding.items():
            tensors[name] = np.full((len(choices), longest), fill, dtype=np.int64)
            for place, one in enumerate(encoded):
                tensors[name][place, : len(one.parts)] = one.inputs[name]
        return Prepared(
            tensors=tensors,
            text=joined(text, beginning, *choices),
            extents={CHOICES_AXIS: len(choices), SEQUENCE_AXIS: longest},
            label=self._read_label(row, choices),
            is_cut=any(one.is_cut for one in encoded),
        )

    def _read_choices(self, row: Row) -> list[str]:
        columns = self.fields.choices
        assert columns is not None
        if isinstance(columns, str):
            found = row.values[columns]
            if isinstance(found, dict) and "text" in found:  # as ARC has it, with `label` beside
                found = found["text"]
            if not isinstance(found, list | tuple):
                raise StageError(
                    f"column `{columns}` holds {describe(found)}, a list of texts is needed",
                    where=row.where,
                    hint="or name one column for each choice: `choices: [ending0, ending1]`",
                )
            for choice in found:
                if not isinstance(choice, str) or not choice.strip():
                    raise StageError(
                        f"column `{columns}` holds {describe(choice)} as a choice, a text is needed",
                        where=row.where,
                    )
            choices = list(found)
        else:
            choices = [read_text(row, column) for column in columns]
        if not MIN_CHOICES <= len(choices) <= self.setting.num_choices:
            raise StageError(
                f"the question has {len(choices)} choices, there may be {MIN_CHOICES} to "
                f"{self.setting.num_choices}",
                where=row.where,
                hint="raise `shapes.num_choices.max`"
                if len(choices) >= MIN_CHOICES
                else "leave the row out",
            )
        return choices

    def _read_label(self, row: Row, choices: list[str]) -> int | None:
        column = self.fields.label
        value = row.values[column] if column is not None else None
        if isinstance(value, ClassValue):  # as the library `datasets` has it for SWAG
            value = value.number
        if value is None or value == "":
            return None
        is_digits = isinstance(value, str) and value.strip().isascii() and value.strip().isdigit()
        if isinstance(value, str) and choices.count(value) == 1:
            place = choices.index(value)
            if is_digits and int(value) != place:
                raise StageError(
                    f"column `{column}` holds the text `{value}`, which may be a place or the text "
                    f"of choice {place}",
                    where=row.where,
                    hint="write the right choice's place, counted from 0, as a number, for which "
                    "a table needs JSON or Parquet",
                )
            return place
        if isinstance(value, str) and is_digits:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise StageError(
                f"column `{column}` holds {describe(value)}, which is not one of the choices",
                where=row.where,
                hint="write the right choice's place, counted from 0, or its text",
            )
        if not 0 <= value < len(choices):
            raise StageError(
                f"column `{column}` says choice {value}, there are 0 to {len(choices) - 1}",
                where=row.where,
                hint="choices are counted from 0; leave the label of an unlabelled row empty",
            )
        return value
