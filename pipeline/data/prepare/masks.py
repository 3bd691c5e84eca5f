"""Fill-mask: a text in which some tokens are hidden, so that the task is really asked."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pipeline.data.prepare.texts import TextPreparation
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pipeline.data.prepare.base import Prepared, Setting
    from pipeline.data.rows import Row

MASKED_SHARE = 0.15
"""Of the tokens that are not special; BERT was trained so (arXiv:1810.04805)."""


class MaskPreparation(TextPreparation):
    """Texts to tokens, `MASKED_SHARE` of them hidden, one at least.

    A text that already has the mask token stays as it is.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        mask = self.tokenizer.mask_id
        if mask is None:
            raise StageError(
                "the checkpoint names no mask token, and the task is to fill it in",
                where="tokenizer_config.json",
                hint='write `"mask_token": "[MASK]"` into it, as the tokenizer has it',
            )
        self._mask = mask

    def prepare(self, row: Row) -> Prepared:
        """The tokens of the row's text, some of them hidden."""
        prepared = super().prepare(row)
        ids = prepared.tensors["input_ids"]
        if self._mask not in ids:
            text, pair = self.read_texts(row)
            parts = self.tokenizer.encode_with_offsets(text, pair).parts
            ordinary = [place for place, part in enumerate(parts) if part is not None]
            if not ordinary:
                raise StageError("no token of the text could be hidden", where=row.where)
            ordinary.sort(key=lambda place: _rank(prepared.text, place))
            ids[ordinary[: max(1, round(MASKED_SHARE * len(ordinary)))]] = self._mask
        return prepared


def _rank(text: str, place: int) -> bytes:
    """Of the text alone: equal texts of two sets with other seeds must be told as equal."""
    return hashlib.sha256(f"{place}\n{text}".encode("utf-8", "surrogatepass")).digest()
