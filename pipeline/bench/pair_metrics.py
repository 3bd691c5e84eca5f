"""How fast an encoder and a decoder write together: as `generation_metrics`, the source included."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bench.generation_metrics import FORMULAS, GenerationTimes
from pipeline.runtimes.generation import GenerationOptions, generate
from pipeline.runtimes.seq2seq import IDS, MASK, SourcedDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.bench.generation_metrics import Work
    from pipeline.hashing import JSON
    from pipeline.runtimes.base import Array, Runner

PAIR_FORMULAS: Final[Mapping[str, str]] = {
    **{name: formula for name, formula in FORMULAS.items() if name != "mfu"},
    "ttft": "time from the call to the first new token: the encoder reads the source, then the decoder "
    "its first token",
    "prompt": "tokens of the source; of a sound its frames",
    "prefill_tokens_per_s": "texts x prompt / ttft",
    "source_cache_bytes": "keys and values of one source in all layers of the decoder; they do not grow",
    "mbu": "(bytes of the decoder's weights + texts x (source_cache_bytes + new tokens / 2 x "
    "cache_bytes_per_token)) / tpot / read_bytes_per_s; more than 1 where weights stay in the processor's "
    "own memory",
    "load_s": "time in which ONNX Runtime makes sessions of both files",
}
"""Name -> formula, in place of `generation_metrics.FORMULAS`. There is no mfu: what an encoder computes for
one element of a source hangs on the model."""


def time_pair(
    encoder: Runner,
    decoder: Runner,
    work: Work,
    *,
    now: Callable[[], float] = time.perf_counter,
) -> GenerationTimes:
    """Answer random sources greedily once, all of one length and none ending early.

    Args:
        encoder: A loaded graph. Call once before for what it does only the first time.
        decoder: The same.
        work: How much; `prompt` is the length of each source where the encoder leaves it open.
        now: A clock, seconds.

    Returns:
        The times; `prompt` of their work is what the encoder really read.

    Raises:
        FeedError: when the two do not fit each other, or the work makes no sense.
        StageError: when a graph cannot be run.
    """
    sources = random_sources(encoder, work.batch, work.prompt)
    stamps: list[float] = []
    started = now()
    bound = SourcedDecoder(encoder, decoder, sources)
    generate(
        bound,
        # Which token is the first makes no difference to what is computed.
        [[0]] * work.batch,
        GenerationOptions(tokens=work.tokens),
        on_step=lambda _: stamps.append(now() - started),
    )
    length = next(iter(sources.values())).shape[-1]
    return GenerationTimes(work=replace(work, prompt=length), stamps=tuple(stamps))


def random_sources(encoder: Runner, batch: int, length: int) -> dict[str, Array]:
    """What an encoder takes: tokens that are in every vocabulary, all seen, or noise."""
    generator = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for spec in encoder.inputs:
        if np.dtype(spec.dtype).kind == "f":
            sizes = [size if isinstance(size, int) else length for size in (spec.shape or ())[1:]]
            noise = generator.standard_normal((batch, *sizes))
            found[spec.name] = noise.astype(spec.dtype)
        elif spec.name == MASK:
            found[spec.name] = np.ones((batch, length), np.int64)
        else:
            found[spec.name] = generator.integers(0, 2, (batch, length))
    return found


def text_sources(texts: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Sources of several lengths in one batch, padded behind: int64 (texts, longest)."""
    shape = (len(texts), max(map(len, texts)))
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {IDS: tokens, MASK: mask}


def pair_utilization(
    times: Mapping[str, Any], *, weight_bytes: int, peaks: Mapping[str, float]
) -> dict[str, JSON]:
    """The share of the machine's read bandwidth that decoding gets; see `PAIR_FORMULAS`.

    Args:
        times: What `summarize` made, with `source_cache_bytes`.
        weight_bytes: Of the decoder.
        peaks: `read_bytes_per_s` of the machine.
    """
    own = times["tokens"] / 2 * times["cache_bytes_per_token"]
    step_bytes = weight_bytes + times["batch"] * (times["source_cache_bytes"] + own)
    return {"mbu": step_bytes / (times["tpot_ms"] / 1e3) / peaks["read_bytes_per_s"]}
