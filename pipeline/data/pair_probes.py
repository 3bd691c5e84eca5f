"""Probes of an encoder with a decoder: what the decoder reads beside a source, and sources of sound."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.data.decoder_inputs import TARGET_IDS
from pipeline.data.probes import IDS, Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.data.sample_set import Tensor

FEATURES: Final = "input_features"
RARE_LENGTH: Final = 48
"""Tokens of a target of rare tokens."""


def with_targets(probes: Sequence[Probe], start: int, longest: int) -> list[Probe]:
    """Probes of texts whose decoder reads the source's own tokens: as rare, as long, as short.

    Args:
        probes: Of the encoder.
        start: The token that every target begins with.
        longest: Tokens of a target at most.
    """
    made = []
    for probe in probes:
        target = np.concatenate([[start], probe.tensors[IDS]])[: max(1, longest)]
        made.append(replace(probe, tensors={**probe.tensors, TARGET_IDS: target.astype(np.int64)}))
    return made


def sound_probes(
    samples: Sequence[Mapping[str, Tensor]],
    *,
    vocabulary: int,
    lengths: tuple[int, int],
    generator: np.random.Generator,
) -> Iterator[Probe]:
    """Probes for a model on sounds: float32 (mel bins, frames), in the samples' value range.

    Args:
        samples: Some evaluation samples, at least one.
        vocabulary: How many token ids there are.
        lengths: Smallest and largest number of tokens of a target.
        generator: Where random numbers come from.
    """
    first, start = samples[0][FEATURES], int(samples[0][TARGET_IDS][0])
    low = min(float(sample[FEATURES].min()) for sample in samples)
    high = max(float(sample[FEATURES].max()) for sample in samples)

    def target(ids: Tensor) -> Tensor:
        length = min(max(len(ids) + 1, lengths[0]), lengths[1])
        resized = np.resize(ids, max(0, length - 1))
        return np.concatenate([[start], resized]).astype(np.int64)

    spread = generator.permutation(vocabulary)[:RARE_LENGTH]
    last = np.arange(vocabulary - 1, max(0, vocabulary - RARE_LENGTH) - 1, -1)
    yield Probe(
        kind="silence",
        text="silence, and rare tokens to be written",
        tensors={FEATURES: np.full_like(first, low), TARGET_IDS: target(spread)},
    )
    noise = generator.uniform(low, high, size=first.shape).astype(first.dtype)
    yield Probe(
        kind="noise",
        text="noise, and the last tokens of the vocabulary",
        tensors={FEATURES: noise, TARGET_IDS: target(last)},
    )
    # Each bin differs from the others, and time may not be turned round.
    down, along = np.linspace(0.0, 1.0, first.shape[0]), np.linspace(0.0, 1.0, first.shape[1])
    rising = (low + (high - low) * np.outer(down, along**2)).astype(first.dtype)
    many = generator.integers(0, vocabulary, lengths[1])
    yield Probe(
        kind="longest",
        text=f"louder and louder, and {lengths[1]} tokens",
        tensors={FEATURES: rising, TARGET_IDS: target(many)},
    )
