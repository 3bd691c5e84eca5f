"""Question answering: where in a function's head is what is asked for?

The passage is a signature with the first paragraph of its docstring; the grammar says where the
function's name, its parameters and its description stand.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

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

    from tests.trained.training import Batch

QUESTIONS = 2
"""About each function, of the four that it answers."""

MAX_CHARACTERS = 120
MAX_TOKENS = 128
VOCABULARY = 4000
TEST_SAMPLES = 400
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 32
EPOCHS = 5
PEAK_RATE = 1e-3


class Sample(NamedTuple):
    """A question; the answer is `context[start:end]`."""

    question: str
    context: str
    start: int
    end: int


def train(folder: Path) -> Outcome:
    """Train, and write `checkpoint/`, `test.jsonl` and `calibration.jsonl` in the form of SQuAD.

    A row has `question`, `context` and `answers`: `{"text": [...], "answer_start": [...]}`.
    """
    from transformers import BertForQuestionAnswering

    training, test = read_samples()
    for name, rows in (("test", test), ("calibration", training[:CALIBRATION_SAMPLES])):
        write_json_lines(folder / f"{name}.jsonl", [_row(sample) for sample in rows])
    tokenizer = train_tokenizer(
        [f"{sample.question} {sample.context}" for sample in training],
        vocabulary=VOCABULARY,
        lowercase=True,
        max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder / "checkpoint")  # before batches change its settings
    model = BertForQuestionAnswering(bert_config(tokenizer))
    fit(
        model,
        lambda: _batches(tokenizer, training, shuffled=True),
        epochs=EPOCHS,
        peak_rate=PEAK_RATE,
    )
    model.save_pretrained(folder / "checkpoint")
    counts = {"train": len(training), "test": len(test), "calibration": CALIBRATION_SAMPLES}
    return Outcome(accuracy=_accuracy(model, tokenizer, test), facts={"samples": counts})


def read_samples() -> tuple[list[Sample], list[Sample]]:
    """The training and the test split, in mixed order, some questions about each function."""
    found: dict[Sample, bool] = {}
    for source in read_files():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                samples = sorted(ask(node), key=lambda sample: rank(str(sample)))
                for sample in samples[:QUESTIONS]:
                    found.setdefault(sample, source.is_for_tests)
    order = sorted(found.items(), key=lambda item: rank(str(item[0])[::-1]))
    training = [sample for sample, is_for_tests in order if not is_for_tests]
    test = [sample for sample, is_for_tests in order if is_for_tests][:TEST_SAMPLES]
    return training, test


def ask(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[Sample]:
    """Every question that a function answers; none when it is too long or says nothing."""
    summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    parameters = [argument.arg for argument in node.args.args if argument.arg != "self"]
    head = f"{node.name}({', '.join(parameters)})"
    context = f"{head}: {summary}"
    if not summary or not parameters or len(context) > MAX_CHARACTERS or not context.isascii():
        return []
    first = len(node.name) + 1
    last = len(head) - 1 - len(parameters[-1])
    return [
        Sample("What is the function called?", context, 0, len(node.name)),
        Sample("What is the first parameter?", context, first, first + len(parameters[0])),
        Sample("What is the last parameter?", context, last, len(head) - 1),
        Sample("What does it do?", context, len(head) + 2, len(context)),
    ]


def _row(sample: Sample) -> dict[str, object]:
    answer = sample.context[sample.start : sample.end]
    answers = {"text": [answer], "answer_start": [sample.start]}
    return {"question": sample.question, "context": sample.context, "answers": answers}


def _batches(
    tokenizer: BertTokenizer, samples: list[Sample], *, shuffled: bool
) -> Iterator[Batch]:
    lengths = [len(sample.context) for sample in samples]
    for indices in batch_by_length(lengths, BATCH_SIZE, shuffled=shuffled):
        rows = [samples[index] for index in indices]
        encoded = tokenizer(
            [row.question for row in rows],
            [row.context for row in rows],
            padding=True,
            truncation="only_second",
            return_tensors="pt",
        )
        # A place that was cut off becomes one past the end, which the loss of the model ignores.
        nowhere = encoded["input_ids"].shape[1]
        first = [encoded.char_to_token(i, row.start, 1) for i, row in enumerate(rows)]
        last = [encoded.char_to_token(i, row.end - 1, 1) for i, row in enumerate(rows)]
        positions = [[nowhere if p is None else p for p in places] for places in (first, last)]
        yield {
            **encoded,
            "start_positions": torch.tensor(positions[0]),
            "end_positions": torch.tensor(positions[1]),
        }


def _accuracy(model: PreTrainedModel, tokenizer: BertTokenizer, samples: list[Sample]) -> float:
    """The share of answers whose first and last token are both right."""
    right = 0
    with torch.inference_mode():
        for batch in _batches(tokenizer, samples, shuffled=False):
            start, end = batch.pop("start_positions"), batch.pop("end_positions")
            found = model(**batch)
            is_right = (found.start_logits.argmax(-1) == start) & (
                found.end_logits.argmax(-1) == end
            )
            right += int(is_right.sum())
    return right / len(samples)
