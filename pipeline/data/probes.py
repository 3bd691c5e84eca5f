"""Inputs that show what samples of usual data do not: rare tokens, long texts, padding, plain images.

Each probe is made from the evaluation samples' own tensors, so nothing is read or tokenised anew, and
from a fixed seed. The checkpoint runs the same probes: whatever it makes of them is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, Tensor

MASK = "attention_mask"
IDS = "input_ids"
TYPES = "token_type_ids"
PIXELS = "pixel_values"
LAST = "sequence"

RARE_LENGTH = 256
"""Longest probe of rare tokens: enough of them in one run, at a moderate price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe; fields as in `pipeline.data.sample_set.SampleEntry`."""

    kind: str
    text: str
    tensors: Mapping[str, Tensor]
    starts: Mapping[str, int] = field(default_factory=dict)
    compared: Literal["values", "finite"] = "values"


def text_probes(
    samples: Sequence[Mapping[str, Tensor]],
    inputs: Mapping[str, InputSpec],
    *,
    vocabulary: int,
    lengths: tuple[int, int],
    generator: np.random.Generator,
) -> Iterator[Probe]:
    """Probes for a model on tokens.

    Args:
        samples: Some evaluation samples, int64 (..., sequence) by input name.
        inputs: What the inputs are.
        vocabulary: How many token ids there are.
        lengths: Smallest and largest length that the recipe allows, tokens.
        generator: Where choices come from.
    """
    ordered = sorted(samples, key=lambda sample: sample[IDS].shape[-1])
    median, longest = ordered[len(ordered) // 2], ordered[-1]
    shortest, largest = lengths
    ids = generator.permutation(vocabulary)
    width = min(RARE_LENGTH, largest)
    for number in range(4):
        chunk = np.resize(np.roll(ids, -number * width), width)
        yield _of_ids(chunk, median, "rare_tokens", f"{width} tokens from all of the vocabulary")
    yield _of_ids(ids[-width:], median, "rare_tokens", "tokens of the vocabulary's shuffled end")
    last = np.arange(max(0, vocabulary - width), vocabulary)
    yield _of_ids(last, median, "last_tokens", f"the last {len(last)} tokens of the vocabulary")
    yield _resized(longest, largest, "longest", f"a text of {largest} tokens, the longest allowed")
    yield _resized(
        median, shortest, "shortest", f"a text of {shortest} tokens, the shortest allowed"
    )
    if TYPES in inputs:
        yield _with_second_half(_resized(median, max(2, min(64, largest)), "token_types", ""))
    for sample in (ordered[0], median):
        padding = min(17, largest - sample[IDS].shape[-1])
        if padding > 0:
            yield _left_padded(sample, inputs, padding)
    yield _with_holes(median, generator)
    yield Probe(
        kind="all_masked",
        text="a text of which every token is masked",
        tensors={**median, MASK: np.zeros_like(median[MASK])},
        compared="finite",
    )


def _of_ids(ids: Tensor, like: Mapping[str, Tensor], kind: str, text: str) -> Probe:
    """The given ids between the first and the last token of a sample, which most models need."""
    row = np.concatenate([like[IDS][..., :1].ravel()[:1], ids[1:-1], like[IDS].ravel()[-1:]])
    leading = like[IDS].shape[:-1]
    tensors = {name: np.zeros((*leading, len(row)), dtype=np.int64) for name in like}
    tensors[IDS][...] = row
    tensors[MASK][...] = 1
    return Probe(kind=kind, text=text, tensors=tensors)


def _resized(sample: Mapping[str, Tensor], length: int, kind: str, text: str) -> Probe:
    """A sample repeated or cut to a length; its last token stays last."""
    places = np.resize(np.arange(sample[IDS].shape[-1]), length)
    places[-1] = sample[IDS].shape[-1] - 1
    tensors = {name: np.ascontiguousarray(tensor[..., places]) for name, tensor in sample.items()}
    tensors[MASK] = np.ones_like(tensors[MASK])
    return Probe(kind=kind, text=text, tensors=tensors)


def _with_second_half(probe: Probe) -> Probe:
    types = np.zeros_like(probe.tensors[TYPES])
    types[..., types.shape[-1] // 2 :] = 1
    return Probe(
        kind="token_types",
        text="a text whose second half is the second of a pair",
        tensors={**probe.tensors, TYPES: types},
    )


def _left_padded(
    sample: Mapping[str, Tensor], inputs: Mapping[str, InputSpec], padding: int
) -> Probe:
    tensors = {}
    for name, tensor in sample.items():
        filled = np.full((*tensor.shape[:-1], padding), inputs[name].fill, dtype=tensor.dtype)
        tensors[name] = np.concatenate([filled, tensor], axis=-1)
    return Probe(
        kind="left_padding",
        text=f"{padding} positions of padding before a text of {sample[IDS].shape[-1]} tokens",
        tensors=tensors,
        starts={LAST: padding},
    )


def _with_holes(sample: Mapping[str, Tensor], generator: np.random.Generator) -> Probe:
    mask = sample[MASK].copy()
    mask[..., 1:] = generator.random(mask[..., 1:].shape) > 0.25
    return Probe(
        kind="mask_with_holes",
        text="a text of which every fourth token is masked",
        tensors={**sample, MASK: mask},
    )


def image_probes(
    samples: Sequence[Mapping[str, Tensor]], *, generator: np.random.Generator
) -> Iterator[Probe]:
    """Probes for a model on images: float32 (channels, height, width), in the samples' value range."""
    first = samples[0][PIXELS]
    low = min(float(sample[PIXELS].min()) for sample in samples)
    high = max(float(sample[PIXELS].max()) for sample in samples)
    plain = {"darkest": np.full_like(first, low), "brightest": np.full_like(first, high)}
    for channel in range(first.shape[0]):
        image = np.full_like(first, low)
        image[channel] = high
        plain[f"channel {channel}"] = image
    for name, image in plain.items():
        yield Probe(kind="plain", text=f"{name} everywhere", tensors={PIXELS: image})
    ramp = np.linspace(low, high, first.shape[-1], dtype=first.dtype)
    across = np.broadcast_to(ramp, first.shape).copy()
    yield Probe(
        kind="gradient", text="dark to bright, from left to right", tensors={PIXELS: across}
    )
    down = np.ascontiguousarray(
        np.swapaxes(
            np.broadcast_to(
                np.linspace(low, high, first.shape[-2], dtype=first.dtype),
                (first.shape[0], first.shape[-1], first.shape[-2]),
            ),
            -1,
            -2,
        )
    )
    yield Probe(kind="gradient", text="dark to bright, from top to bottom", tensors={PIXELS: down})
    noise = generator.uniform(low, high, size=first.shape).astype(first.dtype)
    yield Probe(kind="noise", text="random pixels", tensors={PIXELS: noise})
