"""Files beside a model: the checkpoint's own pass, and each kind of wrong one is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples
from pipeline.stages.check_companions import CHECK_COMPANIONS, CheckCompanionsConfig
from tests import checkpoints
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = ("plain words", "Some Words with CASE")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build_sentence_encoder(tmp_path_factory.mktemp("c") / "encoder")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = checkpoints.build_text_classifier(tmp_path_factory.mktemp("c") / "classifier")
    change(path / "config.json", lambda c: c | named("good", "bad", "neither"))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build_image_classifier(tmp_path_factory.mktemp("c") / "images")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    spec = InputSpec(dtype="int64", axes=("sequence",))
    entries = tuple(
        SampleEntry(index=i, text=text, extents={"sequence": 2}) for i, text in enumerate(TEXTS)
    )
    index = SampleIndex(
        source="t",
        use="evaluation",
        seed=0,
        max_length=64,
        inputs={"input_ids": spec},
        samples=entries,
    )
    save_samples(index, [{"input_ids": np.zeros(2, np.int64)} for _ in TEXTS], folder)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def named(*names: str) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def copy(checkpoint: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(checkpoint, tmp_path / "theirs", ignore=ignored))


def check(theirs: Path, ours: Path, samples: Path, task: str) -> tuple[dict[str, Any], list[str]]:
    """Part -> what was found of it; and the notes."""
    ports = {"companions": theirs, "checkpoint": ours, "samples": samples}
    context = RecordingContext(scratch=samples)
    facts: Any = CHECK_COMPANIONS.run(CheckCompanionsConfig(task=task), ports, samples, context)
    return {part["part"]: part for part in facts["parts"]}, facts["warnings"]


def test_the_checkpoints_own_files_pass(encoder: Path, samples: Path, tmp_path: Path) -> None:
    parts, notes = check(copy(encoder, tmp_path), encoder, samples, "feature-extraction")
    assert {name: part["different"] for name, part in parts.items()} == {
        "tokenizer": 0,
        "config": 0,
        "pooling": 0,
    }
    assert parts["tokenizer"]["compared"] == len(TEXTS) + 10
    assert notes == []


def test_what_is_missing_is_a_note(encoder: Path, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    parts, notes = check(tmp_path / "theirs", encoder, samples, "feature-extraction")
    assert parts == {}
    assert len(notes) == 3


def test_a_pooling_without_its_folder_is_a_note(
    encoder: Path, samples: Path, tmp_path: Path
) -> None:
    theirs = copy(encoder, tmp_path)
    shutil.rmtree(theirs / "1_Pooling")
    parts, notes = check(theirs, encoder, samples, "feature-extraction")
    assert "pooling" not in parts
    assert any("pooling" in note for note in notes)


def test_a_tokenizer_that_keeps_case_is_another_one(
    encoder: Path, samples: Path, tmp_path: Path
) -> None:
    theirs = copy(encoder, tmp_path)
    change(theirs / "tokenizer.json", lambda t: t | {"normalizer": None})
    parts, _ = check(theirs, encoder, samples, "feature-extraction")
    assert parts["tokenizer"]["different"] > 0
    assert "token" in parts["tokenizer"]["first"]


def test_a_vocabulary_of_another_order_is_another_tokenizer(
    encoder: Path, samples: Path, tmp_path: Path
) -> None:
    theirs = copy(encoder, tmp_path)

    def swap(tokenizer: dict[str, Any]) -> dict[str, Any]:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
        return tokenizer

    change(theirs / "tokenizer.json", swap)
    parts, _ = check(theirs, encoder, samples, "feature-extraction")
    assert parts["tokenizer"]["different"] > 0


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"model": {"type": "WordPiece"}}'])
def test_a_damaged_tokenizer_is_a_difference(
    encoder: Path, samples: Path, tmp_path: Path, content: str
) -> None:
    theirs = copy(encoder, tmp_path)
    (theirs / "tokenizer.json").write_text(content)
    parts, _ = check(theirs, encoder, samples, "feature-extraction")
    assert "cannot be read" in parts["tokenizer"]["first"]


def test_another_padding_token_is_a_difference(
    encoder: Path, samples: Path, tmp_path: Path
) -> None:
    theirs = copy(encoder, tmp_path)
    change(theirs / "tokenizer_config.json", lambda c: c | {"pad_token": "[SEP]"})
    change(theirs / "special_tokens_map.json", lambda c: c | {"pad_token": "[SEP]"})
    parts, _ = check(theirs, encoder, samples, "feature-extraction")
    assert parts["padding"]["different"] == 1


def test_a_shorter_limit_is_a_note(encoder: Path, samples: Path, tmp_path: Path) -> None:
    theirs = copy(encoder, tmp_path)
    change(theirs / "tokenizer_config.json", lambda c: c | {"model_max_length": 16})
    parts, notes = check(theirs, encoder, samples, "feature-extraction")
    assert parts["tokenizer"]["different"] == 0
    assert any("model_max_length" in note for note in notes)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (named("bad", "good", "neither"), "class 0 is 'bad'"),
        (named("good", "bad"), "2 classes"),
        (
            named("good", "bad", "neither") | {"label2id": {"good": 1, "bad": 0, "neither": 2}},
            "`label2id` says",
        ),
    ],
)
def test_classes_of_another_order_are_named(
    classifier: Path, samples: Path, tmp_path: Path, labels: dict[str, Any], words: str
) -> None:
    theirs = copy(classifier, tmp_path)
    change(theirs / "config.json", lambda c: c | labels)
    parts, _ = check(theirs, classifier, samples, "text-classification")
    assert words in parts["labels"]["first"]
    assert parts["config"]["different"] == 0


def test_the_configuration_of_another_model_is_named(
    classifier: Path, samples: Path, tmp_path: Path
) -> None:
    theirs = copy(classifier, tmp_path)
    change(theirs / "config.json", lambda c: c | {"model_type": "roberta", "vocab_size": 50265})
    parts, _ = check(theirs, classifier, samples, "text-classification")
    assert parts["config"]["different"] == 2


@pytest.mark.parametrize("is_normalized", [True, False])
def test_another_pooling_is_named(
    encoder: Path, samples: Path, tmp_path: Path, is_normalized: bool
) -> None:
    modes = ("mean",) if not is_normalized else ("cls",)
    theirs = checkpoints.build_sentence_encoder(
        tmp_path / "theirs", modes=modes, is_normalized=is_normalized
    )
    parts, _ = check(theirs, encoder, samples, "feature-extraction")
    assert parts["pooling"]["different"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"image_mean": [0.485, 0.456, 0.406]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 0.4]}, "image_mean"),
        ({"image_std": [0.2, 0.5, 0.5]}, "image_std"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"resample": 0}, "resample"),
        ({"size": {"height": 12, "width": 12}}, "shape"),
    ],
)
def test_pixels_that_differ_are_named_with_the_setting_that_makes_them(
    images: Path, samples: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    theirs = copy(images, tmp_path)
    change(theirs / "preprocessor_config.json", lambda c: c | settings)
    parts, _ = check(theirs, images, samples, "image-classification")
    assert (parts["processor"]["different"] > 0) is bool(words)
    assert words in parts["processor"]["first"]


def test_the_tokens_that_end_a_text_are_the_checkpoints(samples: Path, tmp_path: Path) -> None:
    """A runtime that waits for another one goes on writing."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    (ours / "config.json").write_text('{"eos_token_id": 9}')
    (ours / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')

    def found() -> tuple[dict[str, Any], list[str]]:
        return check(theirs, ours, samples, "text-generation")

    parts, notes = found()
    assert "ending" not in parts
    assert any("eos_token_id" in note for note in notes)
    genai = theirs / "genai_config.json"
    genai.write_text('{"model": {"eos_token_id": [2, 1]}}')
    assert found()[0]["ending"]["different"] == 0
    (theirs / "config.json").write_text('{"eos_token_id": 9}')
    (theirs / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert found()[0]["ending"] == {"part": "ending", "compared": 2, "different": 0, "first": ""}
    genai.write_text('{"model": {"eos_token_id": 2}}')
    assert "2 in genai_config.json, the checkpoint's with 1 or 2" in found()[0]["ending"]["first"]
