"""Probes fit what the recipe allows, whatever that is, and hold what they are made to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.probes import LONGEST, Probe, image_probes, text_probes
from pipeline.data.sample_set import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.data.sample_set import Tensor

FIRST, LAST, PAD = 1, 2, 3
ALL_KINDS = {
    "rare_tokens",
    "last_tokens",
    "longest",
    "shortest",
    "token_types",
    "left_padding",
    "mask_with_holes",
    "all_masked",
}


def _inputs(*names: str, choices: bool = False) -> dict[str, InputSpec]:
    axes = ("num_choices", "sequence") if choices else ("sequence",)
    fills = {"input_ids": PAD}
    return {name: InputSpec(dtype="int64", axes=axes, fill=fills.get(name, 0)) for name in names}


def _sample(length: int, names: Sequence[str], choices: int = 0) -> dict[str, Tensor]:
    leading = (choices,) if choices else ()
    ids = np.full((*leading, length), 4, np.int64)
    ids[..., 0], ids[..., -1] = FIRST, LAST
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: values.get(name, np.zeros_like(ids)) for name in names}


def _probes(
    sizes: Sequence[int] = (9, 5, 30),
    names: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    *,
    choices: int = 0,
    vocabulary: int = 500,
    lengths: tuple[int, int] = (4, 256),
    seed: int = 0,
) -> list[Probe]:
    return list(
        text_probes(
            [_sample(size, names, choices) for size in sizes],
            _inputs(*names, choices=bool(choices)),
            vocabulary=vocabulary,
            lengths=lengths,
            generator=np.random.default_rng(seed),
        )
    )


def _of(kind: str, probes: Sequence[Probe]) -> list[Probe]:
    return [probe for probe in probes if probe.kind == kind]


def test_a_usual_range_has_every_kind() -> None:
    assert {probe.kind for probe in _probes()} == ALL_KINDS


def test_the_same_seed_gives_the_same_probes_and_another_one_others() -> None:
    def ids(seed: int) -> list[bytes]:
        return [probe.tensors["input_ids"].tobytes() for probe in _probes(seed=seed)]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    has_mask=st.booleans(),
    has_types=st.booleans(),
    choices=st.integers(0, 3),
    vocabulary=st.integers(5, 2000),
    shortest=st.integers(1, 50),
    room=st.integers(0, 300),
)
def test_probes_fit_every_range(
    sizes: list[int],
    has_mask: bool,
    has_types: bool,
    choices: int,
    vocabulary: int,
    shortest: int,
    room: int,
) -> None:
    names = ["input_ids", *["attention_mask"] * has_mask, *["token_type_ids"] * has_types]
    largest = max(shortest + room, *sizes)
    probes = _probes(
        sizes, names, choices=choices, vocabulary=vocabulary, lengths=(shortest, largest)
    )
    assert probes
    for probe in probes:
        assert set(probe.tensors) == set(names)
        shapes = {tensor.shape for tensor in probe.tensors.values()}
        assert len(shapes) == 1
        shape = shapes.pop()
        assert shape[:-1] == ((choices,) if choices else ())
        # Those made of a whole sample are no shorter than a sample may be anyway.
        assert min(shortest, *sizes) <= shape[-1] <= largest
        assert probe.tensors["input_ids"].max() < max(vocabulary, 5)
        assert probe.tensors["input_ids"].min() >= 0
        assert probe.starts.get("sequence", 0) < shape[-1]
        assert all(tensor.dtype == np.int64 for tensor in probe.tensors.values())


def test_a_range_of_one_length_has_probes_of_that_length() -> None:
    probes = _probes((16, 16), lengths=(16, 16))
    assert {probe.tensors["input_ids"].shape[-1] for probe in probes} == {16}
    assert {probe.kind for probe in probes} == ALL_KINDS - {"longest", "shortest"}


def test_inputs_without_a_mask_have_no_probes_of_masks() -> None:
    kinds = {probe.kind for probe in _probes(names=("input_ids",))}
    assert kinds == {"rare_tokens", "last_tokens", "longest", "shortest"}


def test_every_part_of_the_vocabulary_is_in_the_longest_probe() -> None:
    (probe,) = _of("longest", _probes(vocabulary=10_000, lengths=(4, 202)))
    inner = np.sort(probe.tensors["input_ids"][1:-1])
    assert len(inner) == 200
    assert np.diff(inner).max() <= 6 * 10_000 / 202
    assert probe.tensors["input_ids"][[0, -1]].tolist() == [FIRST, LAST]


@pytest.mark.parametrize("vocabulary", [5, 30, 500])
@pytest.mark.parametrize("largest", [3, 8, 256])
def test_the_very_last_token_is_always_there(vocabulary: int, largest: int) -> None:
    (probe,) = _of("last_tokens", _probes((3,), vocabulary=vocabulary, lengths=(2, largest)))
    assert vocabulary - 1 in probe.tensors["input_ids"]


def test_very_long_ranges_have_a_bounded_probe() -> None:
    (probe,) = _of("longest", _probes(lengths=(4, 8192)))
    assert probe.tensors["input_ids"].shape == (LONGEST,)


def test_padding_on_the_left_holds_what_padding_holds() -> None:
    probes = _of("left_padding", _probes())
    assert len(probes) == 2
    for probe in probes:
        start = probe.starts["sequence"]
        assert start > 0
        assert set(probe.tensors["input_ids"][:start].tolist()) == {PAD}
        assert not probe.tensors["attention_mask"][:start].any()
        assert probe.tensors["attention_mask"][start:].all()
        assert probe.tensors["input_ids"][start] == FIRST


def test_masks_have_holes_but_not_at_the_first_token() -> None:
    (probe,) = _of("mask_with_holes", _probes())
    mask = probe.tensors["attention_mask"]
    assert mask[0] == 1
    assert 0 < (mask == 0).sum() < len(mask) // 2


def test_all_masked_has_only_to_be_finite() -> None:
    (probe,) = _of("all_masked", _probes())
    assert probe.compared == "finite"
    assert not probe.tensors["attention_mask"].any()


def test_token_types_are_of_a_pair() -> None:
    (probe,) = _of("token_types", _probes())
    assert set(probe.tensors["token_type_ids"].tolist()) == {0, 1}


@pytest.mark.parametrize("shape", [(3, 20, 28), (1, 8, 8), (4, 30, 12)])
def test_images_tell_channels_and_axes_apart(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    samples = [
        {"pixel_values": rng.uniform(-2.0, 2.5, shape).astype(np.float32)} for _ in range(3)
    ]
    probes = list(image_probes(samples, generator=rng))
    images = [probe.tensors["pixel_values"] for probe in probes]
    assert {probe.kind for probe in probes} == {"plain", "gradient", "noise"}
    assert all(image.shape == shape and image.dtype == np.float32 for image in images)
    low = min(sample["pixel_values"].min() for sample in samples)
    high = max(sample["pixel_values"].max() for sample in samples)
    for image in images:
        assert low - 1e-5 <= image.min() <= image.max() <= high + 1e-5
    (gradient,) = (p.tensors["pixel_values"] for p in probes if p.kind == "gradient")
    for other in (gradient[:, ::-1], gradient[:, :, ::-1]):
        assert not np.allclose(gradient, other)
    if shape[1] == shape[2]:
        assert not np.allclose(gradient, gradient.transpose(0, 2, 1))
    for channel in range(1, shape[0]):
        assert not np.allclose(gradient[0], gradient[channel])
