"""The checkpoints work for somebody who only has the files: loaded by `Auto...`, from the disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trained_models import TrainedModel

# Few samples, so that the file is fast; the share that must be right leaves room for that.
SAMPLES = 100
LEAST_RIGHT = 0.85


pytestmark = pytest.mark.trained

# Each model takes a minute to train, and CI has few: one of each kind is enough there.
BY_HAND = [pytest.param(name, marks=pytest.mark.slow) for name in ("answers", "tokens")]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_digits_are_read_from_image_files(trained_digits: TrainedModel) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(trained_digits.checkpoint)
    model = AutoModelForImageClassification.from_pretrained(trained_digits.checkpoint)
    paths = sorted(trained_digits.test.glob("*/*.png"))
    assert len(paths) == trained_digits.facts["samples"]["test"]
    paths = paths[:: len(paths) // SAMPLES]
    with torch.inference_mode():
        inputs = processor([Image.open(path) for path in paths], return_tensors="pt")
        predicted = model(**inputs).logits.argmax(-1).tolist()
    right = [
        model.config.id2label[p] == path.parent.name
        for p, path in zip(predicted, paths, strict=True)
    ]
    assert sum(right) / len(right) >= LEAST_RIGHT


def test_snippets_are_classified(trained_snippets: TrainedModel) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_snippets.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(trained_snippets.checkpoint)
    rows = _rows(trained_snippets.test)[:SAMPLES]
    with torch.inference_mode():
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        predicted = model(**inputs).logits.argmax(-1).tolist()
    right = [
        model.config.id2label[p] == row["label"] for p, row in zip(predicted, rows, strict=True)
    ]
    assert sum(right) / len(right) >= LEAST_RIGHT


@pytest.mark.slow
def test_tokens_are_classified_one_line_at_a_time(trained_tokens: TrainedModel) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_tokens.checkpoint)
    model = AutoModelForTokenClassification.from_pretrained(trained_tokens.checkpoint)
    right = []
    with torch.inference_mode():
        for row in _rows(trained_tokens.test)[:SAMPLES]:
            inputs = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
            predicted = model(**inputs).logits[0].argmax(-1).tolist()
            first = [inputs.word_ids().index(word) for word in range(len(row["tokens"]))]
            labels = [model.config.id2label[predicted[place]] for place in first]
            right += [a == b for a, b in zip(labels, row["labels"], strict=True)]
    assert sum(right) / len(right) >= LEAST_RIGHT


@pytest.mark.slow
def test_questions_are_answered(trained_answers: TrainedModel) -> None:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_answers.checkpoint)
    model = AutoModelForQuestionAnswering.from_pretrained(trained_answers.checkpoint)
    right = []
    with torch.inference_mode():
        for row in _rows(trained_answers.test)[:SAMPLES]:
            inputs = tokenizer(row["question"], row["context"], return_tensors="pt")
            found = model(**inputs)
            first = inputs.token_to_chars(int(found.start_logits.argmax()))
            last = inputs.token_to_chars(int(found.end_logits.argmax()))
            if first is not None and last is not None:
                right.append([row["context"][first.start : last.end]] == row["answers"]["text"])
    assert sum(right) / SAMPLES >= LEAST_RIGHT


def test_docstrings_are_continued_as_well_as_was_written_down(trained_lm: TrainedModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.trained.lm import MOST_PERPLEXITY, measure

    tokenizer = AutoTokenizer.from_pretrained(trained_lm.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(trained_lm.checkpoint)
    assert 1_000_000 < sum(weight.numel() for weight in model.parameters()) < 2_000_000
    texts = [row["text"] for row in _rows(trained_lm.test)]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    accuracy, perplexity = measure(model, tokenizer, texts)
    assert accuracy == pytest.approx(trained_lm.accuracy, abs=1e-4)
    assert perplexity == pytest.approx(trained_lm.facts["perplexity"], rel=1e-3)
    assert perplexity < MOST_PERPLEXITY


@pytest.mark.parametrize("name", [*BY_HAND, "digits", "lm", "snippets"])
def test_calibration_samples_are_no_test_samples(
    name: str, request: pytest.FixtureRequest
) -> None:
    trained: TrainedModel = request.getfixturevalue(f"trained_{name}")
    splits = []
    for path in (trained.test, trained.calibration):
        if path.is_dir():
            splits.append({image.name for image in path.glob("*/*.png")})
        else:
            splits.append(set(path.read_text(encoding="utf-8").splitlines()))
    test, calibration = splits
    assert test.isdisjoint(calibration)
    assert len(calibration) == trained.facts["samples"]["calibration"]


@pytest.mark.parametrize("name", [*BY_HAND, "snippets"])
def test_the_saved_tokenizer_neither_pads_nor_cuts(
    name: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(f"trained_{name}").checkpoint
    settings = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["padding"] is None
    assert settings["truncation"] is None
    assert len(settings["model"]["vocab"]) == 4000
