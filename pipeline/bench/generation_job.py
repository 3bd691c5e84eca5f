"""What a process that times a decoder is told, and what it answers: records that travel as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerJob(_Frozen):
    """Requests at random times; see `pipeline.bench.server`.

    Attributes:
        requests_per_s: How many come on average.
        requests: How many there are.
        batch: How many are served together at most.
        ttft_ms, tpot_ms: The objectives.
        seed: Of the times at which they come.
        generator: Who asks.
    """

    requests_per_s: float
    requests: int
    batch: int
    ttft_ms: float
    tpot_ms: float
    seed: int
    generator: Literal["own", "loadgen"] = "own"


class BatchingJob(_Frozen):
    """Texts of unlike lengths in two orders; see `pipeline.bench.sorted_batching`.

    Attributes:
        texts: Tokens of each prompt, or of each source.
        batch: Texts at a time.
        tokens: New tokens of each.
        rounds: How often both orders are timed.
    """

    texts: tuple[tuple[int, ...], ...]
    batch: int
    tokens: int
    rounds: int


class GenerationJob(_Frozen):
    """What is timed.

    Attributes:
        model: The graph's file; behind an encoder the decoder's.
        encoder: The encoder's file; empty for a decoder alone.
        optimizations: ONNX Runtime's, as in `validate`.
        threads: Of ONNX Runtime.
        works: (texts at a time, prompt tokens, new tokens) of each.
        calls: How often each is timed, after one call that is not.
        server: None leaves it out.
        batching: None leaves it out.
        spawned_s: The system's monotonic clock when the process was started.
    """

    model: str
    encoder: str = ""
    optimizations: Literal["disabled", "all"]
    threads: int
    works: tuple[tuple[int, int, int], ...]
    calls: int
    server: ServerJob | None
    batching: BatchingJob | None = None
    spawned_s: float


class GenerationRecord(_Frozen):
    """What came of it.

    Attributes:
        times, server, batching: Of `summarize`, `summarize_server` and `compare_orders`.
        peak_rss_mib: None where the system does not tell it.
    """

    session: Any
    load_s: float
    cold_start_s: float
    peak_rss_mib: float | None
    cache_bytes_per_token: int
    times: tuple[dict[str, Any], ...]
    server: dict[str, Any] | None
    batching: dict[str, Any] | None = None
