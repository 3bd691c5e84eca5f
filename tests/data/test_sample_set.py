from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.data.sample_set import (
    INDEX_FILE,
    TENSOR_FILE,
    InputSpec,
    SampleEntry,
    SampleIndex,
    load_samples,
    save_samples,
)
from pipeline.errors import StageError

LENGTHS = (3, 5, 2)


def _write(directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    index = SampleIndex(
        source="test",
        use="evaluation",
        seed=0,
        max_length=8,
        inputs={
            "input_ids": InputSpec(dtype="int64", axes=("sequence",), fill=9),
            "attention_mask": InputSpec(dtype="int64", axes=("sequence",)),
        },
        samples=tuple(
            SampleEntry(index=i, text=f"text ü {i}", extents={"sequence": length})
            for i, length in enumerate(LENGTHS)
        ),
    )
    inputs = [
        {"input_ids": np.arange(length) + 10 * i, "attention_mask": np.ones(length, np.int64)}
        for i, length in enumerate(LENGTHS)
    ]
    return save_samples(index, inputs, directory)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    _write(tmp_path)
    samples = load_samples(tmp_path)
    assert len(samples) == 3
    assert tuple(entry.extents["sequence"] for entry in samples.entries) == LENGTHS
    assert samples.input_names == ("attention_mask", "input_ids")
    assert samples.index.samples[1].text == "text ü 1"
    second, first = samples.read([1, 0])
    assert second["input_ids"].tolist() == [10, 11, 12, 13, 14]
    assert first["input_ids"].tolist() == [0, 1, 2]


def test_tensors_have_the_promised_names(tmp_path: Path) -> None:
    _write(tmp_path)
    assert "input_ids/000002" in load_file(tmp_path / TENSOR_FILE)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    assert _write(tmp_path / "a") == _write(tmp_path / "b")
    for name in (TENSOR_FILE, INDEX_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", [TENSOR_FILE, INDEX_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    _write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StageError, match=name):
        load_samples(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    path = tmp_path / INDEX_FILE
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(StageError, match="version 2"):
        load_samples(tmp_path)


def test_samples_out_of_order_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    path = tmp_path / INDEX_FILE
    path.write_text(path.read_text().replace('"index": 1', '"index": 7'))
    with pytest.raises(StageError, match="not numbered"):
        load_samples(tmp_path)


@pytest.mark.parametrize(
    "tensor", [None, np.zeros(4, np.int64), np.zeros(3, np.int32), np.zeros((1, 3), np.int64)]
)
def test_a_tensor_that_the_index_does_not_describe_is_refused(
    tmp_path: Path, tensor: np.ndarray[tuple[int, ...], np.dtype[np.integer]] | None
) -> None:
    _write(tmp_path)
    tensors = load_file(tmp_path / TENSOR_FILE)
    del tensors["input_ids/000000"]
    if tensor is not None:
        tensors["input_ids/000000"] = tensor
    save_file(tensors, tmp_path / TENSOR_FILE)
    with pytest.raises(StageError, match="input_ids/000000"):
        load_samples(tmp_path).read([0])
