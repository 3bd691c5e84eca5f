from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StageError
from tests.data.prepared import make_samples, write_checkpoint, write_lines

NAMED = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE", "2": "crane", "3": "crane"}}
GENERIC = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}


def _labels(tmp_path: Path, config: dict[str, Any], *labels: object) -> list[object]:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **config)
    write_lines(tmp_path / "a.jsonl", *({"text": f"{n}", "y": y} for n, y in enumerate(labels)))
    samples, _ = make_samples(tmp_path, checkpoint, "a.jsonl", label="y")
    return [entry.label for entry in samples.entries]


def test_classes_are_given_by_name_or_number(tmp_path: Path) -> None:
    found = _labels(
        tmp_path, NAMED, "NEGATIVE", 1, "positive", "0", " POSITIVE ", 3, None, "", 1.0
    )
    assert found == [0, 1, 1, 0, 1, 3, None, None, 1]


def test_a_config_without_names_has_two_classes_as_transformers_has_it(tmp_path: Path) -> None:
    from transformers import BertConfig

    assert BertConfig().num_labels == 2
    assert _labels(tmp_path, {}, 0, "1", "LABEL_1") == [0, 1, 1]


STARS = {"id2label": {str(number): str(number + 1) for number in range(5)}}


def test_names_that_are_numbers_are_read_as_names(tmp_path: Path) -> None:
    assert _labels(tmp_path, STARS, "1", "5", None) == [0, 4, None]
    digits = {"id2label": {str(number): str(number) for number in range(3)}}
    assert _labels(tmp_path / "digits", digits, "1", 1, 2.0) == [1, 1, 2]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (1, "so that numbers may mean either"),
        (0, "may mean either"),
        ("0", "classes are `1`, `2`"),
    ],
)
def test_numbers_are_refused_when_classes_are_named_by_other_numbers(
    tmp_path: Path, label: object, message: str
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        _labels(tmp_path, STARS, "1", label)
    assert caught.value.where == "a.jsonl:2"
    assert caught.value.hint


def test_names_unlike_the_checkpoints_are_listed_with_its_own(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not classes of the checkpoint") as caught:
        _labels(tmp_path, NAMED, "POSITIVE", "pos", "neg", "pos")
    assert "`neg`, `pos`; its classes are `NEGATIVE`, `POSITIVE`" in caught.value.message
    assert caught.value.where == "a.jsonl:2"


def test_nameless_classes_take_numbers_only(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="`entailment`") as caught:
        _labels(tmp_path, GENERIC, 2, "entailment")
    assert "write labels as numbers, in the order of its output, 0 to 2" in caught.value.hint


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (4, "holds class 4, the checkpoint has the classes 0 to 3"),
        (-1, "holds class -1"),
        (True, "the truth value `True`"),
        (0.5, "the number `0.5`"),
        ([1], r"the list `\[1\]`"),
        ("crane", "has 2 classes named `crane`"),
    ],
)
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: object, message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        _labels(tmp_path, NAMED, 0, label)
    assert caught.value.where == "a.jsonl:2"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "score"}}, "gives one number, not a class"),
        ({"num_labels": 1}, "gives one number, not a class"),
        ({"problem_type": "regression"} | GENERIC, "gives one number, not a class"),
        ({"problem_type": "multi_label_classification"} | NAMED, "several classes at once"),
        ({"id2label": {"1": "a", "2": "b"}}, "does not number its classes 0 to 1"),
    ],
)
def test_a_head_without_single_classes_takes_no_labels(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        _labels(tmp_path, config, 0)


def test_a_column_of_labels_without_any_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="none of 2 samples has a label: column `y` is empty"):
        _labels(tmp_path, NAMED, None, "")


def test_a_head_without_single_classes_takes_data_without_labels(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", num_labels=1)
    write_lines(tmp_path / "a.jsonl", {"text": "a", "y": 0.5})
    samples, _ = make_samples(tmp_path, checkpoint, "a.jsonl")
    assert samples.entries[0].label is None


def test_classes_of_a_data_set_count_by_name_unless_the_checkpoint_has_none(
    tmp_path: Path,
) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "y": datasets.ClassLabel(names=["positive", "negative"]),
        }
    )
    rows = [{"text": "a", "y": 0}, {"text": "b", "y": 1}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    named = write_checkpoint(tmp_path / "named", **NAMED)
    samples, _ = make_samples(tmp_path, named, "datasets:saved", label="y")
    assert [entry.label for entry in samples.entries] == [
        1,
        0,
    ]  # their order is not the checkpoint's
    nameless = write_checkpoint(tmp_path / "nameless", **GENERIC)
    samples, _ = make_samples(tmp_path, nameless, "datasets:saved", label="y")
    assert [entry.label for entry in samples.entries] == [0, 1]
