"""Token classification: a list of words with a class for each, or a text without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.prepare.base import Prepared, describe
from pipeline.data.prepare.texts import TextPreparation
from pipeline.data.sample_set import NO_LABEL
from pipeline.errors import StageError
from pipeline.tasks import SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.data.rows import Row
    from pipeline.data.tokenise import Encoded


class WordPreparation(TextPreparation):
    """Words, joined by spaces, to tokens; the first token of each word carries its class.

    The words go through the tokenizer as one text, as they will when the model is used. For
    tokenizers that see a space before a word this is what `is_split_into_words` does with
    `add_prefix_space`.
    """

    def prepare(self, row: Row) -> Prepared:
        """The tokens of the row's words, and a class or `NO_LABEL` for each token."""
        column = self.fields.text
        assert column is not None
        words = row.values[column]
        if not isinstance(words, list | tuple):
            return self._prepare_text(row)
        for place, word in enumerate(words):
            if not isinstance(word, str) or not word.strip():
                raise StageError(
                    f"column `{column}` holds {describe(word)} as word {place + 1}, "
                    "a text that is not blank is needed",
                    where=row.where,
                )
        if not words:
            raise StageError(f"column `{column}` holds no words", where=row.where)
        text = " ".join(words)
        encoded = self.tokenizer.encode_with_offsets(text)
        classes = self._read_classes(row, len(words))
        label, reason = None, ""
        if classes is not None:
            label = _spread(classes, words, text, encoded)
            if all(value == NO_LABEL for value in label):
                label, reason = None, "no labelled word was left"
        return Prepared(
            tensors=encoded.inputs,
            text=text,
            extents={SEQUENCE_AXIS: len(encoded.inputs["input_ids"])},
            label=label,
            is_cut=encoded.is_cut,
            unlabelled_because=reason,
        )

    def _prepare_text(self, row: Row) -> Prepared:
        if self.fields.label is not None and row.values[self.fields.label] not in (None, ""):
            raise StageError(
                f"column `{self.fields.text}` holds one text, and labels are for words",
                where=row.where,
                hint='write a list of words and a list of labels: {"tokens": ["a", "b"], '
                '"tags": ["O", "O"]}; this needs .jsonl or .parquet',
            )
        text, _ = self.read_texts(row)
        encoded = self.tokenizer.encode_with_offsets(text)
        return Prepared(
            tensors=encoded.inputs,
            text=text,
            extents={SEQUENCE_AXIS: len(encoded.inputs["input_ids"])},
            is_cut=encoded.is_cut,
        )

    def _read_classes(self, row: Row, count: int) -> list[int] | None:
        """A class or `NO_LABEL` for each word; None for a row without labels."""
        column, classes = self.fields.label, self.setting.classes
        if column is None or classes is None or row.values[column] is None:
            return None
        values = row.values[column]
        if not isinstance(values, list | tuple):
            raise StageError(
                f"column `{column}` holds {describe(values)}, a list with a label for each word is "
                "needed",
                where=row.where,
            )
        if len(values) != count:
            raise StageError(
                f"there are {count} words in column `{self.fields.text}` and {len(values)} labels "
                f"in column `{column}`",
                where=row.where,
            )
        found = [
            NO_LABEL if value == NO_LABEL else classes.find(value, row.where, column)
            for value in values
        ]
        return [NO_LABEL if number is None else number for number in found]


def _spread(
    classes: Sequence[int], words: Sequence[str], text: str, encoded: Encoded
) -> tuple[int, ...]:
    """The class of each word on its first token, `NO_LABEL` on all other tokens."""
    word_at: list[int | None] = []  # for each character, the word it is in
    for number, word in enumerate(words):
        word_at += [number] * len(word) + [None]
    label = [NO_LABEL] * len(encoded.parts)
    seen: set[int] = set()
    for place, ((start, end), part) in enumerate(zip(encoded.offsets, encoded.parts, strict=True)):
        if part is None:
            continue
        # Some tokenizers count the space before a word as a part of its first token.
        inked = (at for at in range(start, end) if not text[at].isspace())
        owner = next((word_at[at] for at in inked), None)
        if owner is not None and owner not in seen:
            seen.add(owner)
            label[place] = classes[owner]
    return tuple(label)
