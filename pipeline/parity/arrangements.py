"""In which company samples are run to see whether they come out the same: batches, padding, extremes.

Padding is on the right only: on the left it is a probe that is compared with the checkpoint, for a
model that counts positions from the start is not indifferent to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.data.sample_set import InputSpec, Tensor

Case: TypeAlias = Literal[
    "alone",
    "repeated",
    "batch",
    "padding",
    "smallest",
    "longest",
    "largest_batch",
    "largest",
    "masked_neighbour",
]
Profile: TypeAlias = "Mapping[str, tuple[int, int, int]]"

BATCH: Final = "batch"
MASK: Final = "attention_mask"
LAST: Final = "sequence"

MOST_POSITIONS: Final = 4096
"""Positions (rows times choices times tokens) of one run; larger ones are made smaller to fit."""

MOST_NUMBERS: Final = 8 * 3 * 224 * 224
"""Numbers fed in one run of images, which have no positions: eight images of the usual size."""

ODD_PADDING: Final = (1, 17)
"""Positions of padding: one, and more than any kernel's block, to an odd length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One sample that is looked at.

    Attributes:
        index: Its place in the sample set.
        tensors: Without a batch axis and without padding.
        extents: Size of each named axis.
        is_made: It was cut or lengthened.
    """

    index: int
    tensors: Mapping[str, Tensor]
    extents: Mapping[str, int]
    is_made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """One run: who stands in which row, and how far all are padded.

    Attributes:
        case: What it shows.
        variant: Which of several of the case, in words.
        rows: Places in the list of subjects; None for a row that is masked altogether.
        sizes: Named axis -> size at least.
    """

    case: Case
    variant: str
    rows: tuple[int | None, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


def arrange(
    samples: Sequence[Subject], inputs: Mapping[str, InputSpec], profile: Profile
) -> tuple[tuple[Subject, ...], tuple[Arrangement, ...]]:
    """All subjects, the samples first and then those made of them here, and all runs.

    Args:
        samples: From the smallest to the largest, at least one.
        inputs: What the graph takes, as the samples have it.
        profile: Axis -> (smallest, usual, largest) that must work; the batch's too.
    """
    subjects = list(samples)
    runs = [*_batches(len(samples), profile), *_paddings(samples, profile)]
    smallest = 0
    if LAST in profile and LAST in samples[0].extents:
        low, _, high = profile[LAST]
        high = min(high, _most_that_fit(samples[-1], LAST))
        smallest = len(subjects)
        subjects += [_resized(samples[0], inputs, low), _resized(samples[-1], inputs, high)]
        runs += _extremes(samples, smallest, profile, high)
    if MASK in inputs and _most_rows(profile) > 1:
        rows = (len(samples) - 1, None, 0)[: _most_rows(profile)]
        runs.append(Arrangement(case="masked_neighbour", variant="a row of padding", rows=rows))
    rows_of_all = min(_most_rows(profile), _rows_that_fit(subjects[smallest]))
    if rows_of_all > 1:
        short = [p for p in range(len(samples)) if _rows_that_fit(samples[p]) >= rows_of_all][:3]
        kinds = [smallest, *(place for place in short if place != smallest)]
        rows = tuple(kinds[number % len(kinds)] for number in range(rows_of_all))
        runs.append(Arrangement(case="largest_batch", variant=f"{rows_of_all} rows", rows=rows))
    return tuple(subjects), tuple(runs)


def _most_rows(profile: Profile) -> int:
    return profile.get(BATCH, (1, 1, 1))[2]


def _batches(count: int, profile: Profile) -> Iterator[Arrangement]:
    """The shortest and the longest come first, last and between others."""
    most = _most_rows(profile)
    if most == 1:
        return
    everyone = tuple(range(count)) if count > 1 else (0, 0)
    half = len(everyone) // 2
    orders = {
        "from short to long": everyone,
        "from long to short": everyone[::-1],
        "long before short": everyone[half:] + everyone[:half],
    }
    for variant, order in orders.items():
        # With few rows, the ends are what differs most.
        rows = order if most >= len(order) else (*order[: most - 1], order[-1])
        yield Arrangement(case="batch", variant=variant, rows=rows)


def _paddings(samples: Sequence[Subject], profile: Profile) -> Iterator[Arrangement]:
    """To another length along each named axis; to the largest, which costs most, but one sample."""
    for place, sample in enumerate(samples):
        for axis, size in sample.extents.items():
            if axis not in profile:
                continue
            _, usual, largest = profile[axis]
            largest = min(largest, _most_that_fit(sample, axis))
            lengths = {f"by {more}": size + more for more in ODD_PADDING} | {"to the usual": usual}
            if place == 0:
                lengths["to the largest"] = largest
            for variant, length in lengths.items():
                if size < length <= largest:
                    yield Arrangement(
                        case="padding",
                        variant=f"{axis} {variant}",
                        rows=(place,),
                        sizes={axis: length},
                    )


def _extremes(
    samples: Sequence[Subject], smallest: int, profile: Profile, high: int
) -> Iterator[Arrangement]:
    """The shortest text that is allowed, and the longest, which stands right behind it."""
    fewest, _, most = profile.get(BATCH, (1, 1, 1))
    low, usual, _ = profile[LAST]
    longest = smallest + 1
    yield Arrangement(
        case="smallest",
        variant=f"{low} tokens, padded to the usual",
        rows=(smallest,),
        sizes={LAST: min(usual, high)},
    )
    if fewest > 1:
        rows = (smallest,) * fewest
        yield Arrangement(case="smallest", variant=f"{fewest} of {low} tokens", rows=rows)
    fitting = min(most, MOST_POSITIONS // (high * _rows_inside(samples[-1])))
    if fitting > 1:
        yield Arrangement(
            case="longest", variant=f"{high} tokens, beside a short one", rows=(longest, smallest)
        )
    if fitting == most and fitting > 1 and high == profile[LAST][2]:
        others = tuple(number % len(samples) for number in range(most - 1))
        yield Arrangement(
            case="largest", variant=f"{most} of {high} tokens", rows=(*others, longest)
        )


def _rows_inside(subject: Subject) -> int:
    """Rows of tokens that one sample has: its choices."""
    return math.prod(size for axis, size in subject.extents.items() if axis != LAST)


def _rows_that_fit(subject: Subject) -> int:
    if subject.extents:
        return MOST_POSITIONS // math.prod(subject.extents.values())
    return MOST_NUMBERS // max(tensor.size for tensor in subject.tensors.values())


def _most_that_fit(subject: Subject, axis: str) -> int:
    others = math.prod(size for name, size in subject.extents.items() if name != axis)
    return max(subject.extents[axis], MOST_POSITIONS // others)


def _resized(sample: Subject, inputs: Mapping[str, InputSpec], length: int) -> Subject:
    """A text repeated or cut to a length, all of it seen; its last token stays last."""
    size = sample.extents[LAST]
    places = np.resize(np.arange(size), length)
    places[-1] = size - 1
    tensors = {
        name: np.ascontiguousarray(np.take(tensor, places, axis=inputs[name].axes.index(LAST)))
        for name, tensor in sample.tensors.items()
        if name in inputs and LAST in inputs[name].axes
    }
    if MASK in tensors and size != length:
        tensors[MASK] = np.ones_like(tensors[MASK])
    return Subject(
        index=sample.index,
        tensors={**sample.tensors, **tensors},
        extents={**sample.extents, LAST: length},
        is_made=True,
    )
