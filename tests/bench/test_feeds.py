"""Inputs are made of real samples, to the shape that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.bench.feeds import SampleStream
from pipeline.data.sample_set import load_samples
from pipeline.errors import StageError
from tests.bench.models import (
    IMAGE_SIZE,
    write_choices,
    write_images,
    write_samples,
    write_set,
)

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXT = ("batch", "sequence")
CHOICES = ("batch", "num_choices", "sequence")


def open_stream(directory: Path, axes: tuple[str, ...] = TEXT) -> SampleStream:
    return SampleStream(load_samples(directory), axes)


def test_tokens_are_the_samples_one_after_the_other(tmp_path: Path) -> None:
    write_samples(tmp_path, 3, 4)
    first, second = (sample["input_ids"] for sample in load_samples(tmp_path).read([0, 1]))
    feeds = open_stream(tmp_path).cut(INPUTS, (2, 5), start=3)
    expected = np.concatenate([second, first, second])[:10].reshape(2, 5)
    assert np.array_equal(feeds["input_ids"], expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 7), (8, 128)])
def test_every_input_has_the_shape_and_the_mask_is_full(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    feeds = open_stream(write_samples(tmp_path)).cut(INPUTS, shape, start=123_456)
    assert {name: (feed.shape, feed.dtype) for name, feed in feeds.items()} == {
        name: (shape, np.dtype(np.int64)) for name in INPUTS
    }
    assert all(feed.flags.c_contiguous for feed in feeds.values())
    assert feeds["attention_mask"].all()


def test_padding_of_the_samples_is_left_out(tmp_path: Path) -> None:
    sample = {
        "input_ids": np.array([0, 7, 8, 9], dtype=np.int64),
        "attention_mask": np.array([0, 1, 1, 1], dtype=np.int64),
    }
    stream = open_stream(write_set(tmp_path, [sample], ("sequence",)))
    assert stream.cut(["input_ids"], (1, 6), start=0)["input_ids"].tolist() == [[7, 8, 9, 7, 8, 9]]


def test_padding_does_not_make_the_stream_begin_again_too_early(tmp_path: Path) -> None:
    samples = [
        {"input_ids": np.array(ids, dtype=np.int64), "attention_mask": np.array(mask)}
        for ids, mask in (([1, 0, 0, 0], [1, 0, 0, 0]), ([2, 3], [1, 1]), ([4, 5], [1, 1]))
    ]
    stream = open_stream(write_set(tmp_path, samples, ("sequence",)))
    assert stream.cut(["input_ids"], (2, 2), 0)["input_ids"].tolist() == [[1, 2], [3, 4]]


def test_choices_are_filled_from_one_stream_without_their_padding(tmp_path: Path) -> None:
    stream = open_stream(write_choices(tmp_path), CHOICES)
    feeds = stream.cut(("input_ids", "attention_mask"), (2, 2, 4), start=0)
    expected = [*range(1, 14), 1, 2, 3]
    assert feeds["input_ids"].shape == feeds["attention_mask"].shape == (2, 2, 4)
    assert feeds["input_ids"].ravel().tolist() == expected
    assert feeds["attention_mask"].dtype == np.int64
    assert feeds["attention_mask"].all()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_images_are_whole_samples_taken_in_turn(tmp_path: Path, batch: int) -> None:
    write_images(tmp_path, 3)
    images = [sample["pixel_values"] for sample in load_samples(tmp_path).read([0, 1, 2])]
    feeds = open_stream(tmp_path, ("batch",)).cut(["pixel_values"], (batch,), start=5)
    pixels = feeds["pixel_values"]
    assert pixels.shape == (batch, *IMAGE_SIZE)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    for row, image in enumerate(pixels):
        assert np.array_equal(image, images[(5 + row) % 3])


def test_the_same_start_gives_the_same_inputs_and_another_one_others(tmp_path: Path) -> None:
    stream = open_stream(write_samples(tmp_path))
    cuts = [stream.cut(["input_ids"], (2, 4), start)["input_ids"] for start in (1, 1, 2)]
    assert np.array_equal(cuts[0], cuts[1])
    assert not np.array_equal(cuts[0], cuts[2])


def test_an_input_that_the_samples_lack_is_named(tmp_path: Path) -> None:
    stream = open_stream(write_samples(tmp_path))
    with pytest.raises(StageError, match=r"no input `pixel_values`; they have attention_mask, in"):
        stream.cut(["pixel_values"], (1, 4), start=0)


@pytest.mark.parametrize("axes", [("height",), (None, "sequence"), ("sequence", "height")])
def test_an_input_whose_axes_no_shape_gives_is_refused(
    tmp_path: Path, axes: tuple[str | None, ...]
) -> None:
    sample = {"input_ids": np.ones((2,) * len(axes), dtype=np.int64)}
    stream = open_stream(write_set(tmp_path, [sample], axes))
    with pytest.raises(StageError, match="`input_ids` cannot be cut to a shape: a sample has"):
        stream.cut(["input_ids"], (1, 4), start=0)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    samples = [{"pixel_values": np.zeros((3, side, side), dtype=np.float32)} for side in (4, 6, 4)]
    stream = open_stream(write_set(tmp_path, samples, (None, None, None), "float32"), ("batch",))
    with pytest.raises(StageError, match=r"`pixel_values` is \[3, 4, 4\] and \[3, 6, 6\]"):
        stream.cut(["pixel_values"], (2,), start=0)


def test_a_mask_that_does_not_fit_its_tokens_is_refused(tmp_path: Path) -> None:
    sample = {
        "input_ids": np.ones((2, 3), dtype=np.int64),
        "attention_mask": np.ones((2, 4), dtype=np.int64),
    }
    write_set(tmp_path, [sample], ("num_choices", "sequence"))
    index = tmp_path / "samples.json"
    index.write_text(index.read_text().replace('"sequence": 3', '"other": 3'))
    with pytest.raises(StageError, match=r"is \[2, 3\], but its mask is \[2, 4\]"):
        open_stream(tmp_path, CHOICES).cut(["input_ids"], (1, 2, 2), start=0)


def test_samples_without_a_token_are_refused(tmp_path: Path) -> None:
    empty = {"input_ids": np.zeros(0, dtype=np.int64)}
    stream = open_stream(write_set(tmp_path, [empty, empty], ("sequence",)))
    with pytest.raises(StageError, match="hold nothing for input `input_ids`"):
        stream.cut(["input_ids"], (1, 4), start=0)


def test_a_set_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no samples to measure with"):
        open_stream(write_set(tmp_path, [], ("sequence",)))


def test_a_decoder_is_given_a_source_as_long_as_its_target(tmp_path: Path) -> None:
    """One sample's source for all rows, from its beginning on as often as it takes; an empty past."""
    from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples

    key = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    sample = {
        "input_ids": np.array([7, 8, 9]),
        "encoder_attention_mask": np.array([1, 1, 1, 0]),
        "past_key_values.0.encoder.key": key,
        "past_key_values.0.decoder.key": np.zeros((2, 0, 3), np.float32),
    }
    axes: dict[str, tuple[str | None, ...]] = {
        "input_ids": ("sequence",),
        "encoder_attention_mask": ("encoder_sequence",),
        "past_key_values.0.encoder.key": (None, "encoder_sequence", None),
        "past_key_values.0.decoder.key": (None, "past_sequence", None),
    }
    index = SampleIndex(
        source="pairs",
        use="evaluation",
        seed=0,
        max_length=8,
        inputs={
            name: InputSpec(
                dtype="int64" if "mask" in name or "ids" in name else "float32", axes=a
            )
            for name, a in axes.items()
        },
        samples=(SampleEntry(index=0, text="", extents={"sequence": 3}),),
    )
    save_samples(index, [sample], tmp_path)
    feeds = open_stream(tmp_path).cut(sample, (2, 6), start=5)
    assert {name: feed.shape for name, feed in feeds.items()} == {
        "input_ids": (2, 6),
        "encoder_attention_mask": (2, 6),
        "past_key_values.0.encoder.key": (2, 2, 6, 3),
        "past_key_values.0.decoder.key": (2, 2, 0, 3),
    }
    assert feeds["encoder_attention_mask"].all()
    for row in feeds["past_key_values.0.encoder.key"]:
        assert np.array_equal(row, key[:, [0, 1, 2, 3, 0, 1]])
