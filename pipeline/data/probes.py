"""Inputs that show what samples of usual data do not: rare tokens, long texts, padding, plain images.

Each probe is made from the evaluation samples' own tensors, so nothing is read or tokenised anew, and
from a fixed seed. The checkpoint runs the same probes: whatever it makes of them is the truth.

They are few and mostly short, because every graph of every chain runs them all, each alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, Tensor

MASK: Final = "attention_mask"
IDS: Final = "input_ids"
TYPES: Final = "token_type_ids"
PIXELS: Final = "pixel_values"
LAST: Final = "sequence"

RARE_LENGTH: Final = 96
"""Tokens of a probe of rare tokens."""
LAST_LENGTH: Final = 48
"""Tokens from the end of the vocabulary, where a table that was cut is cut."""
TYPES_LENGTH: Final = 24
HOLES_LENGTH: Final = 24
LONGEST: Final = 2048
"""Longest probe: attention takes memory with the square of the length. Recipes that allow more have
their largest shape run by the check of invariance only."""
PADDING: Final = 5
"""Positions of padding on the left. Few: models with local attention see nothing but padding from the
first of many, and what a softmax over nothing gives is nobody's fault. Classifiers read that place."""
HOLE_EVERY: Final = 4


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
    """Probes for a model on tokens; those of one kind may be left out where a range forbids them.

    Args:
        samples: Some evaluation samples, at least one; int64 (..., sequence) by input name.
        inputs: What the inputs are.
        vocabulary: How many token ids there are.
        lengths: Smallest and largest length that the recipe allows, tokens.
        generator: Where choices come from.
    """
    ordered = sorted(samples, key=lambda sample: sample[IDS].shape[-1])
    median = ordered[len(ordered) // 2]
    shortest, largest = lengths[0], max(lengths[0], min(lengths[1], LONGEST))

    def fitting(length: int) -> int:
        return min(max(length, shortest), largest)

    rare = fitting(RARE_LENGTH)
    ids = _spread_ids(vocabulary, rare, generator)
    yield _of_ids(ids, median, "rare_tokens", f"{rare} tokens from all of the vocabulary")
    # Backwards, so that the very last one is there however few fit.
    ids = np.arange(vocabulary - 1, max(0, vocabulary - LAST_LENGTH) - 1, -1)
    ids = np.resize(ids, fitting(LAST_LENGTH))
    yield _of_ids(ids, median, "last_tokens", "the last tokens of the vocabulary")
    if largest > rare:
        ids = _spread_ids(vocabulary, largest, generator)
        text = f"{largest} tokens from all of the vocabulary: as long as a text may be"
        yield _of_ids(ids, median, "longest", text)
    if shortest < largest:
        text = f"a text of {shortest} tokens, as short as one may be"
        yield _resized(median, shortest, "shortest", text)
    if TYPES in inputs:
        yield _with_second_half(_resized(median, fitting(TYPES_LENGTH), "token_types", ""))
    yield from _mask_probes(ordered, inputs, fitting(HOLES_LENGTH), largest, generator)


def _mask_probes(
    ordered: Sequence[Mapping[str, Tensor]],
    inputs: Mapping[str, InputSpec],
    usual: int,
    largest: int,
    generator: np.random.Generator,
) -> Iterator[Probe]:
    """What only an `attention_mask` can say; nothing when samples have none.

    Args:
        ordered: The samples by length.
        inputs: What the inputs are.
        usual: Length of a text of which some tokens are masked.
        largest: Largest length allowed.
        generator: Which tokens.
    """
    if MASK not in inputs:
        return
    median = ordered[len(ordered) // 2]
    for sample in (ordered[0], median):
        length = sample[IDS].shape[-1]
        padding = min(PADDING, largest - max(1, length // 2))
        if padding > 0:  # a text that fills all of the length gives way
            kept = _resized(sample, min(length, largest - padding), "", "").tensors
            yield _left_padded(kept, inputs, padding)
    if usual > 1:
        yield _with_holes(_resized(median, usual, "", "").tensors, generator)
    yield Probe(
        kind="all_masked",
        text="a text of which every token is masked",
        tensors={**median, MASK: np.zeros_like(median[MASK])},
        compared="finite",
    )


def _spread_ids(vocabulary: int, count: int, generator: np.random.Generator) -> Tensor:
    """One id from each of `count` equal parts of the vocabulary, shuffled: no part is left out."""
    edges = np.linspace(0, vocabulary, count + 1)
    ids = np.floor(edges[:-1] + generator.random(count) * np.diff(edges)).astype(np.int64)
    return generator.permutation(np.minimum(ids, vocabulary - 1))


def _of_ids(ids: Tensor, like: Mapping[str, Tensor], kind: str, text: str) -> Probe:
    """The given ids between the first and the last token of a sample, which most models need.

    As long as `ids`, of which as many as possible are there.
    """
    ends = like[IDS].reshape(-1, like[IDS].shape[-1])[0, [0, -1]]
    length = len(ids)
    row = ids if length < 3 else np.concatenate([ends[:1], ids[: length - 2], ends[1:]])
    leading = like[IDS].shape[:-1]
    tensors = {name: np.zeros((*leading, len(row)), dtype=np.int64) for name in like}
    tensors[IDS][...] = row
    if MASK in tensors:
        tensors[MASK][...] = 1
    return Probe(kind=kind, text=text, tensors=tensors)


def _resized(sample: Mapping[str, Tensor], length: int, kind: str, text: str) -> Probe:
    """A sample repeated or cut to a length; its last token stays last."""
    size = sample[IDS].shape[-1]
    places = np.resize(np.arange(size), length)
    if length > 1:
        places[-1] = size - 1
    tensors = {name: np.ascontiguousarray(tensor[..., places]) for name, tensor in sample.items()}
    if MASK in tensors:
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
    """About one token in four is masked, at least one; the first never is."""
    mask = sample[MASK].copy()
    length = mask.shape[-1]
    holes = 1 + np.flatnonzero(generator.random(length - 1) < 1 / HOLE_EVERY)
    mask[..., holes if len(holes) else length - 1] = 0
    return Probe(
        kind="mask_with_holes",
        text="a text of which every fourth token is masked",
        tensors={**sample, MASK: mask},
    )


def image_probes(
    samples: Sequence[Mapping[str, Tensor]], *, generator: np.random.Generator
) -> Iterator[Probe]:
    """Probes for a model on images: float32 (channels, height, width), in the samples' value range.

    Args:
        samples: Some evaluation samples, at least one.
        generator: Where random pixels come from.
    """
    first = samples[0][PIXELS]
    low = min(float(sample[PIXELS].min()) for sample in samples)
    high = max(float(sample[PIXELS].max()) for sample in samples)
    for name, value in (("dark", low), ("bright", high)):
        plain = np.full_like(first, value)
        yield Probe(kind="plain", text=f"as {name} as can be", tensors={PIXELS: plain})
    # Each channel differs from the others, and no axis may be turned round or swapped with another.
    down, across = np.linspace(0.0, 1.0, first.shape[1]), np.linspace(0.0, 1.0, first.shape[2])
    ramps = np.stack([np.outer(down ** (1 + k), across ** (2 + k)) for k in range(first.shape[0])])
    ramps = (low + (high - low) * ramps).astype(first.dtype)
    yield Probe(
        kind="gradient", text="dark to bright, to the right below", tensors={PIXELS: ramps}
    )
    noise = generator.uniform(low, high, size=first.shape).astype(first.dtype)
    yield Probe(kind="noise", text="random pixels", tensors={PIXELS: noise})
