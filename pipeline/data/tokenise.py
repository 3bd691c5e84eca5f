"""A checkpoint's own tokenizer, read from `tokenizer.json` with the `tokenizers` library.

`transformers.AutoTokenizer` would need three seconds for its import alone. The two agree whenever
`tokenizer.json` is complete, which the tests assert for the checkpoints they know; and nothing that
is measured rests on it, because reference and candidate are fed the very same ids. A checkpoint
without `tokenizer.json` goes through `AutoTokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import tokenizers

from pipeline.data.json_files import read_json_object
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TOKENIZER_FILE = "tokenizer.json"

Cut: TypeAlias = Literal["longest_first", "only_second"]
"""Which of two texts is cut when both are too long together; a question must stay whole."""

SLOW_TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Vocabularies from which `AutoTokenizer` can build what `tokenizer.json` would have said."""


class _Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...

    @property
    def attention_mask(self) -> list[int]: ...

    @property
    def type_ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...

    @property
    def sequence_ids(self) -> list[int | None]: ...

    @property
    def special_tokens_mask(self) -> list[int]: ...

    @property
    def overflowing(self) -> Sequence[_Encoding]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample with what is needed to find its words among its tokens.

    Attributes:
        inputs: int64 (sequence,) by input name, not padded.
        offsets: For each token, its first and last + 1 character in the text it is of.
        parts: For each token, which text it is of: 0, 1; None for special tokens.
        is_cut: Something was left out, because the sample was too long.
    """

    inputs: dict[str, NDArray[np.int64]]
    offsets: list[tuple[int, int]]
    parts: list[int | None]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What the checkpoint's JSON files say about feeding the model.

    Attributes:
        pad_token: The padding token's text; None when the checkpoint names none.
        pad_token_id: Its id by `config.json`; None when it is not there.
        mask_token: The text of the token that hides a word; None when the checkpoint names none.
        has_token_types: The model takes `token_type_ids`.
    """

    pad_token: str | None
    pad_token_id: int | None
    mask_token: str | None
    has_token_types: bool


class CheckpointTokenizer:
    """Text to model inputs, one sample at a time, special tokens included, cut at a length."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        settings: TokenizerSettings,
        max_length: int,
        cut: Cut = "longest_first",
    ) -> None:
        # The file may carry the padding and truncation of its author's last call (MiniLM's says
        # 128 tokens, padded); neither may leak into our samples.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, strategy=cut)
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._settings = settings

    @property
    def padding(self) -> dict[str, int]:
        """Input name -> the value of padded positions; its keys are the inputs of a sample.

        A checkpoint that names no padding token pads with id 0, which its mask then hides.
        """
        named = self._settings.pad_token
        known = None if named is None else self._tokenizer.token_to_id(named)
        pad = known if known is not None else self._settings.pad_token_id
        values = {"input_ids": 0 if pad is None else pad, "attention_mask": 0}
        return values | ({"token_type_ids": 0} if self._settings.has_token_types else {})

    @property
    def pad_token(self) -> str | None:
        """The padding token's text, or None when the checkpoint names none."""
        return self._settings.pad_token

    @property
    def mask_id(self) -> int | None:
        """Id of the token that hides a word, or None when the checkpoint names none."""
        named = self._settings.mask_token
        known: int | None = None if named is None else self._tokenizer.token_to_id(named)
        return known

    def as_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, pair: str | None = None) -> dict[str, NDArray[np.int64]]:
        """The inputs of one sample: int64 (sequence,) by input name, not padded.

        Args:
            text: The text, or the first of two.
            pair: The second text.

        Raises:
            StageError: when the text that may not be cut leaves no room for the other.
        """
        return self.encode_with_offsets(text, pair).inputs

    def encode_with_offsets(self, text: str, pair: str | None = None) -> Encoded:
        """As `encode`, with the place of each token in the texts."""
        encoding: _Encoding
        require_unicode(text)
        require_unicode(pair or "")
        try:
            encoding = self._tokenizer.encode(text, pair)
        # What the library raises has no type of its own.
        except Exception as err:
            raise StageError(
                f"the text cannot be cut to {self.max_length} tokens: {err}",
                hint="raise `shapes.sequence.max`, or leave the row out",
            ) from err
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        if self._settings.has_token_types:
            columns["token_type_ids"] = encoding.type_ids
        special = encoding.special_tokens_mask
        return Encoded(
            inputs={name: np.asarray(values, dtype=np.int64) for name, values in columns.items()},
            offsets=encoding.offsets,
            parts=[
                None if is_special else part
                for part, is_special in zip(encoding.sequence_ids, special, strict=True)
            ],
            is_cut=bool(encoding.overflowing),
        )


def load_tokenizer(
    directory: Path, max_length: int, *, is_pair: bool = False, cut: Cut = "longest_first"
) -> CheckpointTokenizer:
    """The tokenizer of a checkpoint.

    Args:
        directory: Holds `tokenizer.json`, or a vocabulary that `AutoTokenizer` reads, and best
            also `tokenizer_config.json` and `config.json`.
        max_length: Longest sample in tokens, special tokens included.
        is_pair: Samples are of two texts, which takes more special tokens.
        cut: Which of two texts is cut.

    Raises:
        StageError: when there is no tokenizer, its file is damaged, or `max_length` leaves no
            room for text between the special tokens.
    """
    path = directory / TOKENIZER_FILE
    if path.is_file():
        tokenizer = _read_tokenizer(path)
    elif any((directory / name).is_file() for name in SLOW_TOKENIZER_FILES):
        tokenizer = _build_tokenizer(directory)
    else:
        raise StageError(
            f"the checkpoint has no tokenizer: neither `{TOKENIZER_FILE}` nor one of "
            + ", ".join(f"`{name}`" for name in SLOW_TOKENIZER_FILES),
            hint="put the tokenizer beside the weights: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(CHECKPOINT)",
        )
    special = tokenizer.num_special_tokens_to_add(is_pair=is_pair)
    if max_length <= special:
        raise StageError(
            f"max_length is {max_length}, and {special} of it are special tokens",
            hint="raise `shapes.sequence.max`",
        )
    return CheckpointTokenizer(tokenizer, read_settings(directory), max_length, cut)


def require_unicode(text: str) -> None:
    r"""Check that a text is one: JSON can hold half of a character, such as `"\ud800"`.

    Raises:
        StageError: naming the place of the first half.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise StageError(
            f"the text is no Unicode: character {err.start + 1} is `\\u{ord(text[err.start]):04x}`, "
            "half of a pair whose other half is missing",
            hint="correct the text, or leave the row out",
        ) from err


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except ValueError as err:
        raise StageError(f"`{TOKENIZER_FILE}` cannot be read: {err}") from err


def _build_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        built = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as err:
        raise StageError(f"the checkpoint's tokenizer cannot be loaded: {err}") from err
    backend = getattr(built, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise StageError(
            f"`{type(built).__name__}` has no fast form",
            hint=f"convert it to `{TOKENIZER_FILE}` first",
        )
    return backend


def read_settings(directory: Path) -> TokenizerSettings:
    """What `tokenizer_config.json`, `special_tokens_map.json` and `config.json` say.

    `token_type_ids` are fed to a model that tells two types or more apart (`type_vocab_size`), as
    the export does it: with one type, or none, they could only ever be 0.

    Raises:
        StageError: when one of the files is not a JSON object.
    """
    config = read_json_object(directory / "config.json")
    tokenizer = read_json_object(directory / "tokenizer_config.json")
    special = read_json_object(directory / "special_tokens_map.json")
    types = config.get("type_vocab_size")
    pad_id = config.get("pad_token_id")
    return TokenizerSettings(
        pad_token=_token_text(tokenizer.get("pad_token")) or _token_text(special.get("pad_token")),
        pad_token_id=pad_id if isinstance(pad_id, int) else None,
        mask_token=_token_text(tokenizer.get("mask_token"))
        or _token_text(special.get("mask_token")),
        has_token_types=isinstance(types, int) and types > 1,
    )


def _token_text(token: object) -> str | None:
    """A special token is written as its text, or as an object with the text in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
