"""Text classification: what kind of text of a Python source file is this?

Calls, first paragraphs of docstrings, messages of exceptions, and signatures, each without the marks
that give it away (quotes, `def`). Two kinds of code and two of prose: some answers are close, as
they are in practice. Comments are left out: their style is that of docstrings or of messages.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import torch

from tests.trained.standard_library import rank, read_files
from tests.trained.training import (
    Outcome,
    batch_by_length,
    bert_config,
    fit,
    train_tokenizer,
    write_json_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import BertTokenizer, PreTrainedModel

    from tests.trained.standard_library import SourceText
    from tests.trained.training import Batch

LABELS = ("call", "docstring", "error", "signature")
MIN_WORDS = 3
MAX_CHARACTERS = 200
MAX_TOKENS = 128
VOCABULARY = 4000
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 32
EPOCHS = 4
PEAK_RATE = 1e-3

Sample = tuple[str, str]
"""Text and label."""


def train(folder: Path) -> Outcome:
    """Train, and write `checkpoint/`, `test.jsonl` and `calibration.jsonl` (`text`, `label`)."""
    from transformers import BertForSequenceClassification

    training, test = read_samples()
    for name, rows in (("test", test), ("calibration", training[:CALIBRATION_SAMPLES])):
        write_json_lines(
            folder / f"{name}.jsonl", [{"text": text, "label": label} for text, label in rows]
        )
    tokenizer = train_tokenizer(
        [text for text, _ in training],
        vocabulary=VOCABULARY,
        lowercase=True,
        max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder / "checkpoint")  # before batches change its settings
    model = BertForSequenceClassification(bert_config(tokenizer, LABELS))
    fit(
        model,
        lambda: _batches(tokenizer, training, shuffled=True),
        epochs=EPOCHS,
        peak_rate=PEAK_RATE,
    )
    model.save_pretrained(folder / "checkpoint")
    counts = {
        "train": len(training),
        "test": len(test),
        "calibration": CALIBRATION_SAMPLES,
    }
    accuracy = _accuracy(model, tokenizer, test)
    return Outcome(accuracy=accuracy, facts={"samples": counts, "labels": list(LABELS)})


def read_samples() -> tuple[list[Sample], list[Sample]]:
    """The training and the test split: as many of each label, in mixed order, no text twice."""
    found: dict[str, tuple[str, bool]] = {}
    for source in read_files():
        for text, label in _read_file(source):
            found.setdefault(text, (label, source.is_for_tests))
    splits = []
    for is_for_tests in (False, True):
        by_label: dict[str, list[str]] = {label: [] for label in LABELS}
        for text, (label, is_test_text) in found.items():
            if is_test_text == is_for_tests:
                by_label[label].append(text)
        count = min(map(len, by_label.values()))
        samples = [
            (text, label)
            for label, texts in by_label.items()
            for text in sorted(texts, key=rank)[:count]
        ]
        splits.append(sorted(samples, key=lambda sample: rank(sample[0])))
    return splits[0], splits[1]


def _read_file(source: SourceText) -> Iterator[Sample]:
    for node in ast.walk(source.tree):
        for text, label in _read_node(node):
            line = " ".join(text.split())
            if len(line.split()) >= MIN_WORDS and len(line) <= MAX_CHARACTERS and line.isascii():
                yield line, label


def _read_node(node: ast.AST) -> Iterator[Sample]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield (ast.get_docstring(node) or "").split("\n\n")[0], "docstring"
            yield f"{node.name}({ast.unparse(node.args)})", "signature"
        case ast.ClassDef():
            yield (ast.get_docstring(node) or "").split("\n\n")[0], "docstring"
        case ast.Raise(exc=ast.Call(args=[ast.Constant(value=str(message)), *_])):
            yield message, "error"
        case ast.Raise(exc=ast.Call(args=[ast.BinOp(left=ast.Constant(value=str(message))), *_])):
            yield message, "error"
        case ast.Expr(value=ast.Call() as call):
            yield ast.unparse(call), "call"


def _batches(
    tokenizer: BertTokenizer, samples: list[Sample], *, shuffled: bool
) -> Iterator[Batch]:
    lengths = [len(text) for text, _ in samples]
    for indices in batch_by_length(lengths, BATCH_SIZE, shuffled=shuffled):
        encoded = tokenizer(
            [samples[index][0] for index in indices],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        labels = torch.tensor([LABELS.index(samples[index][1]) for index in indices])
        yield {**encoded, "labels": labels}


def _accuracy(model: PreTrainedModel, tokenizer: BertTokenizer, samples: list[Sample]) -> float:
    right = 0
    with torch.inference_mode():
        for batch in _batches(tokenizer, samples, shuffled=False):
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(samples)
