"""A word-piece tokenizer of a few words, written as a checkpoint has it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "file", "is", "read", "##s", ".", "a", "name")


def write_tokenizer(directory: Path, *, type_vocab_size: int | None = 2) -> Path:
    """Write tokenizer.json, tokenizer_config.json and config.json; returns the directory.

    The file carries a truncation and a padding of its author, as MiniLM's does.
    """
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, object] = {"model_type": "bert", "vocab_size": len(WORDS)}
    if type_vocab_size is not None:
        config["type_vocab_size"] = type_vocab_size
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "[PAD]", "tokenizer_class": "BertTokenizer"}), encoding="utf-8"
    )
    return directory
