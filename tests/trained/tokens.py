"""Token classification: the parts of a line of Python, as Python's own tokenizer sees them.

A word is one token of `tokenize`. What a name stands for depends on its neighbours: it is called
when a parenthesis follows, and an attribute when a dot stands before it.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from typing import TYPE_CHECKING, NamedTuple

import torch

from tests.trained.standard_library import rank, read_files
from tests.trained.training import (
    IGNORED,
    Outcome,
    batch_by_length,
    bert_config,
    fit,
    train_tokenizer,
    write_json_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import BertTokenizer, PreTrainedModel

    from tests.trained.training import Batch

LABELS = ("ATTRIBUTE", "CALL", "COMMENT", "KEYWORD", "NAME", "NUMBER", "OP", "STRING")
MIN_WORDS = 3
MAX_WORDS = 24
MAX_CHARACTERS = 100
MAX_TOKENS = 128
VOCABULARY = 4000
TRAINING_SAMPLES = 8000
TEST_SAMPLES = 600
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 32
EPOCHS = 2
PEAK_RATE = 1e-3

# Python 3.12 cuts f-strings into parts; they are left out, so that all versions agree.
_F_STRING = re.compile(r"[rR]?[fF][rR]?['\"]")
_KINDS = {
    tokenize.OP: "OP",
    tokenize.NUMBER: "NUMBER",
    tokenize.STRING: "STRING",
    tokenize.COMMENT: "COMMENT",
}
_LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER}


class Line(NamedTuple):
    """One logical line of source.

    Attributes:
        tokens: Its tokens, without layout.
        labels: The label of each token.
    """

    tokens: tuple[str, ...]
    labels: tuple[str, ...]


def train(folder: Path) -> Outcome:
    """Train, and write `checkpoint/`, `test.jsonl` and `calibration.jsonl` (`tokens`, `labels`)."""
    from transformers import BertForTokenClassification

    training, test = read_samples()
    for name, rows in (("test", test), ("calibration", training[:CALIBRATION_SAMPLES])):
        write_json_lines(folder / f"{name}.jsonl", [row._asdict() for row in rows])
    tokenizer = train_tokenizer(
        [" ".join(line.tokens) for line in training],
        vocabulary=VOCABULARY,
        lowercase=False,
        max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder / "checkpoint")  # before batches change its settings
    model = BertForTokenClassification(bert_config(tokenizer, LABELS))
    fit(
        model,
        lambda: _batches(tokenizer, training, shuffled=True),
        epochs=EPOCHS,
        peak_rate=PEAK_RATE,
    )
    model.save_pretrained(folder / "checkpoint")
    counts = {"train": len(training), "test": len(test), "calibration": CALIBRATION_SAMPLES}
    accuracy, by_label = _accuracy(model, tokenizer, test)
    facts = {"samples": counts, "labels": list(LABELS), "recall": by_label}
    return Outcome(accuracy=accuracy, facts=facts)


def read_samples() -> tuple[list[Line], list[Line]]:
    """The training and the test split, in mixed order, no line twice."""
    found: dict[Line, bool] = {}
    for source in read_files():
        for line in read_lines(source.text):
            found.setdefault(line, source.is_for_tests)
    order = sorted(found, key=lambda line: rank("\n".join(line.tokens)))
    training = [line for line in order if not found[line]][:TRAINING_SAMPLES]
    test = [line for line in order if found[line]][:TEST_SAMPLES]
    return training, test


def read_lines(text: str) -> Iterator[Line]:
    """The logical lines of Python source that are neither too long nor hold f-strings."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            line.append(token)
        elif token.type == tokenize.NEWLINE:
            if _is_usable(line):
                yield label_line(line)
            line = []


def label_line(line: Sequence[tokenize.TokenInfo]) -> Line:
    """The tokens of a line with their labels."""
    texts = [token.string for token in line]
    labels = []
    for index, token in enumerate(line):
        if token.type != tokenize.NAME:
            labels.append(_KINDS[token.type])
        elif keyword.iskeyword(token.string):
            labels.append("KEYWORD")
        elif texts[index + 1 : index + 2] == ["("]:
            labels.append("CALL")
        elif index > 0 and texts[index - 1] == ".":
            labels.append("ATTRIBUTE")
        else:
            labels.append("NAME")
    return Line(tuple(texts), tuple(labels))


def _is_usable(line: Sequence[tokenize.TokenInfo]) -> bool:
    texts = [token.string for token in line]
    return (
        MIN_WORDS <= len(line) <= MAX_WORDS
        and sum(map(len, texts)) <= MAX_CHARACTERS
        and all(text.isascii() and text.isprintable() for text in texts)
        and not any(_F_STRING.match(text) for text in texts)
        and all(token.type in _KINDS or token.type == tokenize.NAME for token in line)
    )


def _batches(tokenizer: BertTokenizer, samples: list[Line], *, shuffled: bool) -> Iterator[Batch]:
    lengths = [sum(map(len, line.tokens)) for line in samples]
    for indices in batch_by_length(lengths, BATCH_SIZE, shuffled=shuffled):
        encoded = tokenizer(
            [list(samples[index].tokens) for index in indices],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        labels = torch.full_like(encoded["input_ids"], IGNORED)
        for row, index in enumerate(indices):
            seen: set[int | None] = {None}
            for position, word in enumerate(encoded.word_ids(row)):
                # Only the first piece of a word has a label, as is the custom.
                if word not in seen:
                    labels[row, position] = LABELS.index(samples[index].labels[word])
                    seen.add(word)
        yield {**encoded, "labels": labels}


def _accuracy(
    model: PreTrainedModel, tokenizer: BertTokenizer, samples: list[Line]
) -> tuple[float, dict[str, float]]:
    """The share of tokens that are right, of all and of each label."""
    right = torch.zeros(len(LABELS), dtype=torch.int64)
    wrong = torch.zeros(len(LABELS), dtype=torch.int64)
    with torch.inference_mode():
        for batch in _batches(tokenizer, samples, shuffled=False):
            labels = batch.pop("labels")
            predicted = model(**batch).logits.argmax(-1)
            is_labelled = labels != IGNORED
            is_right = predicted == labels
            right += torch.bincount(labels[is_labelled & is_right], minlength=len(LABELS))
            wrong += torch.bincount(labels[is_labelled & ~is_right], minlength=len(LABELS))
    total = right + wrong
    by_label = {
        label: round(int(right[index]) / max(1, int(total[index])), 4)
        for index, label in enumerate(LABELS)
    }
    return int(right.sum()) / int(total.sum()), by_label
