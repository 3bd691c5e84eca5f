from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.choose import choose_rows
from pipeline.data.prepare.base import Prepared
from pipeline.data.rows import Row
from pipeline.data.take import sample_fingerprint, take_samples
from pipeline.errors import StageError
from tests.data.prepared import make_samples, write_checkpoint, write_image_checkpoint, write_lines


def _rows(count: int, distinct: int | None = None) -> Iterator[Row]:
    for number in range(count):
        yield Row(f"row {number}", {"value": number % (distinct or count), "other": number})


def _prepare(row: Row) -> Prepared:
    return Prepared(tensors={"x": np.array([row.values["value"]])}, text=row.where)


def _fingerprints(values: range | list[int]) -> frozenset[str]:
    return frozenset(sample_fingerprint({"x": np.array([value])}) for value in values)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 9))
def test_a_choice_of_fewer_begins_a_choice_of_more(total: int, count: int, seed: int) -> None:
    choice = choose_rows(_rows(total), count=count, seed=seed, columns=["value"])
    more = choose_rows(_rows(total), count=count + 1, seed=seed, columns=["value"])
    assert choice.seen == total
    assert len(choice.rows) == min(count, total)
    assert more.rows[: len(choice.rows)] == choice.rows
    assert len({number for number, _ in choice.rows}) == len(choice.rows)
    assert all(set(row.values) == {"value"} for _, row in choice.rows)


def test_every_row_may_be_chosen() -> None:
    chosen = {
        number
        for seed in range(60)
        for number, _ in choose_rows(_rows(20), count=2, seed=seed, columns=[]).rows
    }
    assert chosen == set(range(20))


def test_memory_does_not_grow_with_the_source() -> None:
    def wide(count: int) -> Iterator[Row]:
        for number in range(count):
            yield Row("", {"text": f"{number}" * 1000})

    tracemalloc.start()
    choose_rows(wide(20_000), count=5, seed=0, columns=["text"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # the source is 100 MB


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 5), st.data())
def test_shared_samples_are_taken_only_when_there_are_too_few_others(
    total: int, others: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, total))
    distinct = data.draw(st.integers(1, total))
    avoided = range(min(others, distinct))
    taken = take_samples(
        lambda: _rows(total, distinct),
        _prepare,
        count=count,
        seed=seed,
        columns=["value"],
        others=_fingerprints(avoided),
    )
    fresh = sum(number % distinct not in avoided for number in range(total))
    assert len(taken.samples) == count
    assert sum(not sample.is_shared for sample in taken.samples) == min(count, fresh)
    numbers = [sample.number for sample in taken.samples]
    assert numbers == sorted(set(numbers))
    assert taken.rows_seen == total


def test_the_same_tensors_have_the_same_fingerprint_and_others_have_not() -> None:
    tensors = {"a": np.arange(6).reshape(2, 3), "b": np.zeros(2)}
    first = sample_fingerprint(tensors)
    assert first == sample_fingerprint(dict(reversed(tensors.items())))
    for other in (
        {"a": tensors["a"].reshape(3, 2), "b": tensors["b"]},
        {"a": tensors["a"].astype(np.int32), "b": tensors["b"]},
        {"c": tensors["a"], "b": tensors["b"]},
        {"a": tensors["a"]},
    ):
        assert sample_fingerprint(other) != first


# --- through the stage ------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_one_file_serves_both_uses_and_they_stay_apart(tmp_path: Path, task: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    write_lines(tmp_path / "a.jsonl", *({"text": f"row {n}, and {n} again"} for n in range(40)))
    evaluation, _ = make_samples(tmp_path, checkpoint, "a.jsonl", task=task, samples=15)
    at = evaluation.tensors.parent
    calibration, facts = make_samples(
        tmp_path, checkpoint, "a.jsonl", task=task, samples=25, seed=1, evaluation=at
    )
    texts = [{entry.text for entry in one.entries} for one in (evaluation, calibration)]
    assert not texts[0] & texts[1]
    assert (facts["overlap"], facts["warnings"]) == (0, [])
    assert calibration.index.use == "calibration"
    _, facts = make_samples(
        tmp_path, checkpoint, "a.jsonl", task=task, samples=30, seed=1, evaluation=at
    )
    assert facts["overlap"] == 5
    assert "5 of 30 calibration samples are evaluation samples too" in facts["warnings"][0]


def test_an_overlap_is_an_error_when_the_recipe_says_so(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    write_lines(tmp_path / "a.jsonl", *({"text": f"row {n}"} for n in range(4)))
    write_lines(tmp_path / "b.jsonl", {"text": "row 2"}, {"text": "other"})
    evaluation, _ = make_samples(tmp_path, checkpoint, "a.jsonl")
    with pytest.raises(StageError, match=r"1 of 2 calibration samples .*: b\.jsonl:1\n") as caught:
        make_samples(
            tmp_path,
            checkpoint,
            "b.jsonl",
            evaluation=evaluation.tensors.parent,
            stage={"overlap": "error"},
        )
    assert "overlap: warn" in caught.value.hint


def test_calibration_needs_no_labels(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    write_lines(tmp_path / "a.jsonl", {"text": "a", "y": 0})
    write_lines(tmp_path / "b.jsonl", {"text": "b"})
    evaluation, _ = make_samples(tmp_path, checkpoint, "a.jsonl", label="y")
    samples, facts = make_samples(
        tmp_path, checkpoint, "b.jsonl", evaluation=evaluation.tensors.parent
    )
    assert samples.entries[0].label is None
    assert facts["labels"]["labelled"] == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_built_in_texts_for_both_uses_stay_apart(tmp_path: Path, seed: int) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    source = "builtin:stdlib-docstrings"
    evaluation, _ = make_samples(tmp_path, checkpoint, source, samples=20)
    samples, facts = make_samples(
        tmp_path, checkpoint, source, samples=30, seed=seed, evaluation=evaluation.tensors.parent
    )
    assert len(samples) == 30
    assert facts["overlap"] == 0


def test_built_in_images_for_both_uses_stay_apart(tmp_path: Path) -> None:
    checkpoint = write_image_checkpoint(tmp_path / "checkpoint")
    source, task = "builtin:synthetic-images", "image-feature-extraction"
    evaluation, _ = make_samples(tmp_path, checkpoint, source, task=task, samples=4)
    samples, facts = make_samples(
        tmp_path, checkpoint, source, task=task, samples=6, evaluation=evaluation.tensors.parent
    )
    assert len(samples) == 6
    assert facts["overlap"] == 0
    assert not (samples.tensors.parent / "images").exists()
