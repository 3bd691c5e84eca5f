"""What is drafted converts, and holds the limits that were drafted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.drafting import Draft
from pipeline.recipe import dump_recipe, load_recipe
from tests.checkpoints import build_question_answerer
from tests.drafting.data import Drafter, write_images, write_questions, write_reviews


def _convert(made: Draft, folder: Path) -> pipeline.Artifact:
    """Convert what was drafted, without engines and speed, which say nothing of tiny models."""
    document: dict[str, Any] = dump_recipe(load_recipe(made.path))
    document["benchmark"] = None
    document["targets"] = [t for t in document["targets"] if t["runtime"] == "onnxruntime"]
    names = {target["name"] for target in document["targets"]}
    gates = document["gates"]
    gates["speed"] = None
    gates["targets"] = {name: own for name, own in gates["targets"].items() if name in names}
    # Random weights of 32 columns have no redundancy that 8 bits could live on.
    for own in gates["targets"].values():
        own["parity"] = {"cosine_similarity_mean": {"min": 0.9}}
        own["quality"] = None
    edited = made.path.with_name("edited.yaml")
    edited.write_text(json.dumps(document), encoding="utf-8")
    artifact = pipeline.convert(edited, output=folder / "artifacts", store=folder / "store")
    artifact.verify()
    return artifact


def test_calibration_is_taken_from_the_same_images(
    draft: Drafter, images: Path, tmp_path: Path
) -> None:
    write_images(Path("pictures"), 8)
    made = draft(images, data="pictures")
    recipe = made.recipe
    assert recipe.model.task == "image-classification"
    assert recipe.shapes.sequence is None
    assert recipe.data.calibration is not None
    assert recipe.data.evaluation.samples == 16
    assert recipe.data.calibration.samples == 8
    assert recipe.gates.quality is not None
    assert [t.name for t in recipe.targets][:2] == ["cpu-fp32", "cpu-int8"]
    report = _convert(made, tmp_path).report()
    facts = next(node.facts for node in report.nodes if node.name == "samples@calibration")
    assert (facts["samples"], facts["overlap"]) == (8, 0)


@pytest.mark.slow
def test_questions_and_answers_convert(draft: Drafter, tmp_path: Path) -> None:
    checkpoint = build_question_answerer(tmp_path / "answers")
    write_questions(tmp_path / "data" / "questions.jsonl")
    made = draft("answers", data="data/questions.jsonl")
    recipe = made.recipe
    assert checkpoint.is_dir()
    assert recipe.model.source == "./answers"
    assert recipe.data.evaluation.source == "data/questions.jsonl"
    assert recipe.data.evaluation.text == "question"
    assert recipe.data.evaluation.text_pair == "context"
    assert recipe.data.evaluation.label == "answers"
    report = _convert(made, tmp_path).report()
    assert {gate.gate for gate in report.gates} >= {"parity", "quality"}


@pytest.mark.slow
def test_reviews_and_sentences_convert(
    draft: Drafter, classifier: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    write_reviews(Path("reviews.jsonl"))
    _convert(draft(classifier, data="reviews.jsonl"), tmp_path)
    _convert(draft(sentence_encoder, "other.yaml"), tmp_path)
