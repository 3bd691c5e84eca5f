"""A text, or a pair of texts, with at most one class as its label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.json_files import read_json_object
from pipeline.data.prepare.base import Prepared, read_text
from pipeline.data.sample_set import InputSpec
from pipeline.data.tokenise import load_tokenizer
from pipeline.errors import StageError
from pipeline.tasks import SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.prepare.base import Setting
    from pipeline.data.rows import Row
    from pipeline.data.tokenise import Cut


class TextPreparation:
    """Texts to tokens. The other tasks on text build on it."""

    cut: Cut = "longest_first"
    axes: tuple[str, ...] = (SEQUENCE_AXIS,)

    def __init__(self, setting: Setting) -> None:
        self.fields = setting.fields
        self.setting = setting
        is_pair = setting.fields.text_pair is not None or setting.fields.choices is not None
        self.tokenizer = load_tokenizer(
            setting.checkpoint, setting.max_length, is_pair=is_pair, cut=self.cut
        )
        self._known = _known_tokens(setting.checkpoint)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """int64 inputs that are filled with the tokenizer's padding."""
        return {
            name: InputSpec(dtype="int64", axes=self.axes, fill=fill)
            for name, fill in self.tokenizer.padding.items()
        }

    @property
    def notes(self) -> Mapping[str, str | None]:
        """The padding token, None when the checkpoint names none."""
        return {"pad_token": self.tokenizer.pad_token}

    def prepare(self, row: Row) -> Prepared:
        """The tokens of the row's text or texts, and its class.

        Raises:
            StageError: a token is none of the model's, or the row lacks what is to be read.
        """
        text, pair = self.read_texts(row)
        encoded = self.tokenizer.encode_with_offsets(text, pair)
        self._require_known(encoded.inputs["input_ids"], joined(text, pair))
        classes, column = self.setting.classes, self.fields.label
        return Prepared(
            tensors=encoded.inputs,
            text=joined(text, pair),
            extents={SEQUENCE_AXIS: len(encoded.inputs["input_ids"])},
            label=classes.read(row, column) if classes and column else None,
            is_cut=encoded.is_cut,
        )

    def read_texts(self, row: Row) -> tuple[str, str | None]:
        """The row's text, and the second one when there is a column for it."""
        assert self.fields.text is not None
        pair = self.fields.text_pair
        return read_text(row, self.fields.text), read_text(row, pair) if pair else None

    def _require_known(self, tokens: NDArray[np.int64], text: str) -> None:
        largest = int(tokens.max(initial=0))
        if self._known is None or largest < self._known:
            return
        raise StageError(
            f"the tokenizer makes token {largest} of a text, and the model's tokens are 0 to "
            f"{self._known - 1}: {text[:60]!r}",
            where="tokenizer.json",
            hint="the tokenizer is another model's, or tokens were added to it without "
            "`resize_token_embeddings`",
        )


def joined(*texts: str | None) -> str:
    """Texts as the report shows them."""
    return " | ".join(text for text in texts if text)


def _known_tokens(checkpoint: Path) -> int | None:
    """How many tokens the model has, by its `config.json`; None where that does not say it."""
    path = checkpoint / "config.json"
    config = read_json_object(path) if path.is_file() else {}
    inner = config.get("text_config")
    found = (inner if isinstance(inner, dict) else config).get("vocab_size")
    return found if type(found) is int and found > 0 else None
