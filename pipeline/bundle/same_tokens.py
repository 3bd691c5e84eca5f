"""Greedy tokens of our own loop, and where another program's part from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pipeline.runtimes.generation import Generation
    from pipeline.runtimes.onnxruntime import Optimizations

PROMPTS: Final = 3
TOKENS: Final = 24
NEAR_TIE: Final = 1e-3
"""Margin of two logits over the largest magnitude of all, within which two programs may choose either.

Both run float32 sums of the same numbers in another order, which is a tenth of this.
"""
FAR: Final = {"fp32": 1e-4}
FAR_ELSE: Final = 2e-2
"""RMS of the difference over RMS of the outputs: sums in another order; in 8 bits and fp16 a value that
falls to the other side of a rounding as well."""


def prompts_of(vocabulary: int, positions: int) -> list[list[int]]:
    """Prompts of 3, 9 and 20 tokens (less where positions are few), the same ones every time."""
    generator = np.random.default_rng(0)
    lengths = [min(length, max(1, positions // 2)) for length in (3, 9, 20)]
    return [generator.integers(0, vocabulary, length).tolist() for length in lengths]


def own_tokens(
    graph: Path,
    prompts: Sequence[Sequence[int]],
    length: int,
    stops: Collection[int],
    pad: int,
    *,
    optimizations: Optimizations = "all",
) -> list[Generation]:
    """What our own loop makes of each prompt alone, with its logits.

    Raises:
        StageError: the graph cannot be run.
    """
    from pipeline.runtimes.generation import GenerationOptions, generate
    from pipeline.runtimes.ort_decoder import OrtDecoder

    options = GenerationOptions(tokens=length, stops=frozenset(stops), pad=pad, keeps_logits=True)
    with OrtDecoder(graph, threads=1, optimizations=optimizations) as decoder:
        return [generate(decoder, [prompt], options) for prompt in prompts]


def first_difference(
    own: Sequence[Generation],
    theirs: Sequence[Sequence[int]],
    stops: Collection[int],
    *,
    near: float = NEAR_TIE,
) -> str:
    """Where another program chose another token than ours, a sentence; empty when it never did.

    Args:
        own: Of `own_tokens`.
        theirs: For each prompt the other program's new tokens.
        stops: Tokens that end a text; they may be among the tokens or not.
        near: As `NEAR_TIE`.
    """
    for number, (ours, made) in enumerate(zip(own, theirs, strict=True)):
        tokens, other = _without_end(ours.tokens[0], stops), _without_end(made, stops)
        if tokens == other:
            continue
        at = next(
            (n for n, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b),
            min(len(tokens), len(other)),
        )
        logits = ours.logits[0][at]
        if at < len(tokens) and at < len(other):
            margin = float(logits[tokens[at]] - logits[other[at]]) / float(np.abs(logits).max())
            if 0 <= margin <= near:
                continue
        return f"token {at} after prompt {number} is {_name(other, at)}, and ours is {_name(tokens, at)}"
    return ""


def _without_end(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    kept = list(tokens)
    return kept[:-1] if kept and kept[-1] in stops else kept


def _name(tokens: Sequence[int], at: int) -> str:
    return str(tokens[at]) if at < len(tokens) else "the end"
