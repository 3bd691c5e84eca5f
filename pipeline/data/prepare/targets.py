"""What a decoder behind an encoder is made to read: the text that it should write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.decoder_inputs import TARGET_AXIS
from pipeline.data.prepare.base import read_text
from pipeline.data.sample_set import InputSpec
from pipeline.data.tokenise import load_tokenizer
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pipeline.data.prepare.base import Setting
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import Tensor


class TargetTokens:
    """Texts to what the decoder is fed when it is taught: its first token, then those of the text.

    Position i is judged by token i + 1, as transformers' `shift_tokens_right` has it.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.start is None:
            raise StageError(
                "nothing says with which token the decoder begins",
                where="config.json",
                hint="write `decoder_start_token_id` into it, or into generation_config.json",
            )
        self._start = setting.start
        self._column = setting.fields.target
        # The first token has a place too.
        self._tokenizer = load_tokenizer(setting.checkpoint, max(2, setting.max_length) - 1)
        self.fill = self._tokenizer.padding["input_ids"]
        self.pad_token = self._tokenizer.pad_token

    @property
    def spec(self) -> InputSpec:
        """Of `decoder_input_ids`."""
        return InputSpec(dtype="int64", axes=(TARGET_AXIS,), fill=self.fill)

    def read(self, row: Row) -> tuple[Tensor, str, bool]:
        """Tokens, int64 (length,); the text; and whether something was cut off.

        Raises:
            StageError: when the row has no text to write.
        """
        assert self._column is not None
        text = read_text(row, self._column)
        encoded = self._tokenizer.encode_with_offsets(text)
        ids = encoded.inputs["input_ids"]
        if ids.size and int(ids[0]) == self._start:  # Whisper's tokenizer puts it there itself
            ids = ids[1:]
        return np.concatenate([[self._start], ids]).astype(np.int64), text, encoded.is_cut
