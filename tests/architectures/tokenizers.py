"""Tiny tokenizers of the three kinds that encoders have, each with its family's special tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing

from tests.checkpoints import POSITIONS, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""In the order of their ids."""


def write_word_pieces(path: Path, special: dict[str, str]) -> dict[str, int]:
    """Word pieces of single characters (BERT, MPNet); returns the ids of the special tokens."""
    words = [token for token in vocabulary() if token not in BERT_TOKENS.values()]
    tokens = _numbered([*special.values(), *words])
    tokenizer = Tokenizer(WordPiece(tokens, unk_token=special["unk"]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return _save(tokenizer, special, tokens, path)


def write_bytes(path: Path, special: dict[str, str]) -> dict[str, int]:
    """Bytes without merges (RoBERTa, ModernBERT); returns the ids of the special tokens."""
    symbols = [*special.values(), *sorted(ByteLevel.alphabet())]
    tokens = _numbered(symbols)
    tokenizer = Tokenizer(BPE(tokens, [], unk_token=special["unk"]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return _save(tokenizer, special, tokens, path)


def write_unigrams(path: Path, special: dict[str, str]) -> dict[str, int]:
    """Unigrams as of SentencePiece (XLM-R, ALBERT, DeBERTa-v2)."""
    words = [token for token in vocabulary() if token not in BERT_TOKENS.values()]
    pieces = [*special.values(), "\u2581", *(word for word in words if not word.startswith("##"))]
    pieces += [f"\u2581{word}" for word in words if word.isalpha()]
    tokens = _numbered(pieces)
    scores = [(token, -float(index % 7)) for token, index in tokens.items()]
    tokenizer = Tokenizer(Unigram(scores, unk_id=tokens[special["unk"]]))
    tokenizer.pre_tokenizer = Metaspace()
    return _save(tokenizer, special, tokens, path)


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Token -> id, without gaps where one is there twice."""
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def _save(
    tokenizer: Tokenizer, special: dict[str, str], tokens: dict[str, int], path: Path
) -> dict[str, int]:
    cls, sep = special["cls"], special["sep"]
    is_doubled = sep == "</s>"  # RoBERTa and its kin part two texts by two of them
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {sep} $B {sep}" if is_doubled else f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokens[cls]), (sep, tokens[sep])],
    )
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(path / "tokenizer.json"))
    names: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS}
    (path / "tokenizer_config.json").write_text(json.dumps(names | config), encoding="utf-8")
    return {name: tokens[token] for name, token in special.items()} | {"size": len(tokens)}
