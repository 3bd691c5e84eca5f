"""Question answering: a question, a passage, and where in the passage the answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.data.prepare.base import Prepared, describe, read_text
from pipeline.data.prepare.texts import TextPreparation, joined
from pipeline.errors import StageError
from pipeline.tasks import SEQUENCE_AXIS

if TYPE_CHECKING:
    from pipeline.data.rows import Row
    from pipeline.data.tokenise import Cut, Encoded

PASSAGE = 1
"""The passage is the second of the two texts."""


class SpanPreparation(TextPreparation):
    """A question and a passage to tokens; only the passage is cut."""

    cut: Cut = "only_second"

    def prepare(self, row: Row) -> Prepared:
        """The tokens of question and passage, and the first and last token of the answer."""
        question, passage_column = self.fields.text, self.fields.text_pair
        assert question is not None
        assert passage_column is not None
        text, passage = read_text(row, question), read_text(row, passage_column)
        encoded = self.tokenizer.encode_with_offsets(text, passage)
        label, reason = None, ""
        if self.fields.label is not None:
            answer = _read_answer(row, self.fields.label, passage)
            if answer is None:
                reason = "there is no answer"
            else:
                label = _find_tokens(answer, encoded)
                reason = "" if label else "the answer was cut off"
        return Prepared(
            tensors=encoded.inputs,
            text=joined(text, passage),
            extents={SEQUENCE_AXIS: len(encoded.inputs["input_ids"])},
            label=label,
            is_cut=encoded.is_cut,
            unlabelled_because=reason,
        )


def _read_answer(row: Row, column: str, passage: str) -> tuple[int, int] | None:
    """First and last character of the answer in the passage; None when there is none.

    It is a text; a list of texts; or what SQuAD has: `{"text": [...], "answer_start": [...]}`, or a
    list of `{"text": ..., "answer_start": ...}`. The first of several answers counts.
    """
    value: Any = row.values[column]
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    start: object = None
    if isinstance(value, dict):
        if "text" not in value:
            raise StageError(
                f"column `{column}` holds {describe(value)}, an answer has a `text`",
                where=row.where,
            )
        value, start = _first(value["text"]), _first(value.get("answer_start"))
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise StageError(
            f"column `{column}` holds {describe(value)}, an answer is a text", where=row.where
        )
    answer = value.strip()
    if start is None:
        start = passage.find(answer)
        if start < 0 or not answer:
            raise StageError(
                f"the answer in column `{column}` is not in the passage: {describe(value)}",
                where=row.where,
                hint="write it as it stands in the passage, or leave it empty",
            )
    if isinstance(start, bool) or not isinstance(start, int):
        raise StageError(
            f"`answer_start` in column `{column}` is {describe(start)}, a whole number is needed",
            where=row.where,
        )
    start += len(value) - len(value.lstrip()) if not passage.startswith(answer, start) else 0
    if not passage.startswith(answer, start):
        found = passage[start : start + len(answer)]
        raise StageError(
            f"at character {start} of the passage is {describe(found)}, "
            f"column `{column}` says {describe(answer)}",
            where=row.where,
            hint="`answer_start` counts characters from 0",
        )
    return start, start + len(answer) - 1


def _first(value: object) -> object:
    if isinstance(value, list | tuple):
        return value[0] if value else None
    return value


def _find_tokens(answer: tuple[int, int], encoded: Encoded) -> tuple[int, int] | None:
    """The tokens that the first and the last character are in; None when one was cut off."""
    found: list[int | None] = [None, None]
    for place, ((start, end), part) in enumerate(zip(encoded.offsets, encoded.parts, strict=True)):
        if part != PASSAGE:
            continue
        for side, character in enumerate(answer):
            if start <= character < end:
                # Several tokens may be of one character: from the first to the last of them.
                found[side] = place if side == 1 or found[0] is None else found[0]
    first, last = found
    return None if first is None or last is None else (first, last)
