"""How fast a decoder writes: what people mean by ttft, tpot, itl, and tokens a second (`FORMULAS`)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.runtimes.generation import GenerationOptions, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.hashing import JSON
    from pipeline.runtimes.decoder import Decoder

FORMULAS: Final[Mapping[str, str]] = {
    "ttft": "time from the call to the first new token, prefill included",
    "itl": "time between one new token and the next, one value for each",
    "tpot": "(time to the last token - ttft) / (new tokens - 1), the mean of itl",
    "prefill_tokens_per_s": "texts x prompt tokens / ttft",
    "decode_tokens_per_s": "texts x (new tokens - 1) / (time to the last token - ttft)",
    "cache_bytes_per_token": "layers x 2 x key/value heads x width of a head x bytes of an element",
    "mbu": "(bytes of weights + texts x (prompt + new tokens / 2) x cache_bytes_per_token) / tpot "
    "/ read_bytes_per_s; more than 1 where weights stay in the processor's own memory",
    "mfu": "prefill_tokens_per_s x 2 x weights in products / float32_flops_per_s; more than 1 where "
    "products are of integers",
    "cold_start_s": "from the start of a new process to the first token of one text: Python, imports, "
    "load, prefill",
    "load_s": "time in which ONNX Runtime makes a session of the file",
    "peak_rss_mib": "largest resident memory of the process, to the end of all that is timed",
    "read_bytes_per_s": "main memory of this machine, the best of a few rounds of reading 512 MiB "
    "before and after all that is timed",
    "float32_flops_per_s": "products of float32 matrices on this machine, the best of a few rounds "
    "before and after",
}
"""Name -> formula. The names are those of MLPerf Inference's token latencies and of vLLM's benchmarks; all
texts of a batch get their tokens together. Model bandwidth utilization (mbu) is Databricks' (LLM Inference
Performance Engineering: Best Practices, 2023), with the cache as long as it is on average; model FLOPs
utilization (mfu) that of PaLM (Chowdhery et al., 2022, appendix B) without attention, of prefill, where a
machine computes and does not wait for its memory. Both are shares of what this machine was measured to do.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is timed.

    Attributes:
        batch: Texts at a time.
        prompt: Tokens of each prompt.
        tokens: New tokens of each; 2 or more, so that one has another before it.
    """

    batch: int
    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTimes:
    """One call.

    Attributes:
        work: What was done.
        stamps: When each new token was there, seconds since the call.
    """

    work: Work
    stamps: tuple[float, ...]

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return self.stamps[0] * 1e3

    @property
    def itl_ms(self) -> tuple[float, ...]:
        """Inter-token latencies."""
        return tuple(
            (after - before) * 1e3
            for before, after in zip(self.stamps[:-1], self.stamps[1:], strict=True)
        )

    @property
    def tpot_ms(self) -> float:
        """Time per output token behind the first."""
        return fmean(self.itl_ms)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens of all texts by the time to the first new one."""
        return self.work.batch * self.work.prompt / self.stamps[0]

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens of all texts behind the first, by the time that they took."""
        return self.work.batch * 1e3 / self.tpot_ms


def time_generation(
    decoder: Decoder, work: Work, *, now: Callable[[], float] = time.perf_counter
) -> GenerationTimes:
    """Continue random prompts greedily once, all of one length and none ending early.

    Args:
        decoder: A loaded graph. Call once before for what it does only the first time.
        work: How much.
        now: A clock, seconds.

    Raises:
        FeedError: when the work makes no sense.
        StageError: when the decoder cannot be run.
    """
    # Which tokens they are makes no difference to what is computed, and two are in every vocabulary.
    prompts = np.random.default_rng(0).integers(0, 2, (work.batch, work.prompt)).tolist()
    stamps: list[float] = []
    started = now()
    generate(
        decoder,
        prompts,
        GenerationOptions(tokens=work.tokens),
        on_step=lambda _: stamps.append(now() - started),
    )
    return GenerationTimes(work=work, stamps=tuple(stamps))


def summarize(calls: Sequence[GenerationTimes], cache_bytes_per_token: int) -> dict[str, JSON]:
    """Medians over calls of the same work; of itl the 50th and the 99th percentile of all.

    Args:
        calls: One or more.
        cache_bytes_per_token: Of one text.
    """
    work = calls[0].work
    latencies = np.array([latency for call in calls for latency in call.itl_ms])
    return {
        "batch": work.batch,
        "prompt": work.prompt,
        "tokens": work.tokens,
        "calls": len(calls),
        "ttft_ms": median(call.ttft_ms for call in calls),
        "tpot_ms": median(call.tpot_ms for call in calls),
        "itl_p50_ms": float(np.quantile(latencies, 0.5)),
        "itl_p99_ms": float(np.quantile(latencies, 0.99)),
        "prefill_tokens_per_s": median(call.prefill_tokens_per_s for call in calls),
        "decode_tokens_per_s": median(call.decode_tokens_per_s for call in calls),
        "cache_bytes_per_token": cache_bytes_per_token,
    }


def utilization(
    times: Mapping[str, JSON], *, weight_bytes: int, flops: int, peaks: Mapping[str, float]
) -> dict[str, JSON]:
    """Which share of what the machine can do a summary stands for: `mbu` of decode, `mfu` of prefill.

    Args:
        times: What `summarize` made.
        weight_bytes: Read for every step, whatever the batch.
        flops: Of one token of one text.
        peaks: `read_bytes_per_s` and `float32_flops_per_s` of the machine.
    """
    known = {key: float(value) for key, value in times.items() if isinstance(value, (int, float))}
    seen = known["prompt"] + known["tokens"] / 2
    step_bytes = weight_bytes + known["batch"] * seen * known["cache_bytes_per_token"]
    return {
        "mbu": step_bytes / (known["tpot_ms"] / 1e3) / peaks["read_bytes_per_s"],
        "mfu": known["prefill_tokens_per_s"] * flops / peaks["float32_flops_per_s"],
    }
