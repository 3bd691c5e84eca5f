"""Inputs are cut from real tokens, to the shape that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.bench.feeds import TokenStream
from pipeline.errors import StageError
from tests.bench.models import write_samples

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def test_tokens_are_the_samples_one_after_the_other(tmp_path: Path) -> None:
    path = write_samples(tmp_path, 3, 4) / "samples.safetensors"
    tensors = load_file(path)
    stream = np.concatenate([tensors["input_ids/000000"], tensors["input_ids/000001"]])
    feeds = TokenStream(path).cut(INPUTS, (2, 5), start=2)
    expected = np.concatenate([stream[2:], stream, stream])[:10].reshape(2, 5)
    assert np.array_equal(feeds["input_ids"], expected)


def test_every_input_has_the_shape_and_the_mask_is_full(tmp_path: Path) -> None:
    tokens = TokenStream(write_samples(tmp_path) / "samples.safetensors")
    feeds = tokens.cut(INPUTS, (8, 128), start=123_456)
    assert {name: (feed.shape, feed.dtype) for name, feed in feeds.items()} == {
        name: ((8, 128), np.dtype(np.int64)) for name in INPUTS
    }
    assert feeds["attention_mask"].all()


def test_padding_of_the_samples_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    save_file(
        {
            "input_ids/000000": np.array([0, 7, 8, 9], dtype=np.int64),
            "attention_mask/000000": np.array([0, 1, 1, 1], dtype=np.int64),
        },
        path,
    )
    feeds = TokenStream(path).cut(["input_ids"], (1, 6), start=0)
    assert feeds["input_ids"].tolist() == [[7, 8, 9, 7, 8, 9]]


def test_an_input_that_the_samples_lack_is_named(tmp_path: Path) -> None:
    tokens = TokenStream(write_samples(tmp_path) / "samples.safetensors")
    with pytest.raises(StageError, match="no input `pixel_values`; they have input_ids"):
        tokens.cut(["pixel_values"], (1, 4), start=0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"input_ids/000000": np.zeros(4, dtype=np.float32)}, "float32"),
        ({"input_ids/000000": np.zeros((1, 4), dtype=np.int64)}, "2 axes"),
        ({"input_ids/000000": np.zeros(0, dtype=np.int64)}, "no tokens"),
        ({"attention_mask/000000": np.ones(4, dtype=np.int64)}, "no tokens"),
    ],
)
def test_samples_that_are_no_token_samples_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "samples.safetensors"
    save_file(tensors, path)
    with pytest.raises(StageError, match=message):
        TokenStream(path)
