"""Times an encoder and a decoder together, in the process that `generation_launch` is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench.generation_job import GenerationRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.bench.generation_job import BatchingJob, GenerationJob
    from pipeline.runtimes.base import Runner


def measure_pair(
    job: GenerationJob, *, on_call: Callable[[], None], peak_rss_mib: Callable[[], float | None]
) -> GenerationRecord:
    """Load both graphs, write the first token, then time everything that is asked for.

    Args:
        job: What; `encoder` is there.
        on_call: Called whenever a call is finished.
        peak_rss_mib: Tells the memory of this process, at the end.

    Raises:
        FeedError: when the two graphs do not fit each other.
        StageError: when ONNX Runtime cannot run a graph.
    """
    from pipeline.bench.generation_metrics import Work, summarize
    from pipeline.bench.pair_metrics import random_sources, time_pair
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.seq2seq import SourcedDecoder

    works = [Work(batch=batch, prompt=prompt, tokens=new) for batch, prompt, new in job.works]
    settings: dict[str, Any] = {"optimizations": job.optimizations, "threads": job.threads}
    begun = time.perf_counter()
    with (
        OnnxRuntimeRunner(Path(job.encoder), **settings) as encoder,
        OnnxRuntimeRunner(Path(job.model), **settings) as decoder,
    ):
        load_s = time.perf_counter() - begun
        time_pair(encoder, decoder, Work(batch=1, prompt=works[0].prompt, tokens=1))
        cold_start_s = time.monotonic() - job.spawned_s
        times = []
        for work in works:
            one = SourcedDecoder(encoder, decoder, random_sources(encoder, 1, work.prompt))
            calls = []
            for _ in range(1 + job.calls):
                calls.append(time_pair(encoder, decoder, work))
                on_call()
            found = summarize(calls[1:], one.bytes_per_token)
            times.append({**found, "source_cache_bytes": one.source_bytes})
        return GenerationRecord(
            session=decoder.session,
            load_s=load_s,
            cold_start_s=cold_start_s,
            cache_bytes_per_token=one.bytes_per_token,
            times=tuple(times),
            server=None,
            batching=_orders(encoder, decoder, job.batching, on_call) if job.batching else None,
            peak_rss_mib=peak_rss_mib(),
        )


def _orders(
    encoder: Runner, decoder: Runner, asked: BatchingJob, on_call: Callable[[], None]
) -> dict[str, Any]:
    """Sources of unlike lengths, as they come and sorted."""
    from pipeline.bench.pair_metrics import text_sources
    from pipeline.bench.sorted_batching import compare_orders
    from pipeline.runtimes.generation import GenerationOptions, generate
    from pipeline.runtimes.seq2seq import SourcedDecoder

    def write(places: Sequence[int]) -> None:
        sources = text_sources([asked.texts[at] for at in places])
        bound = SourcedDecoder(encoder, decoder, sources)
        generate(bound, [[0]] * len(places), GenerationOptions(tokens=asked.tokens))

    return compare_orders(
        write,
        [len(text) for text in asked.texts],
        batch=asked.batch,
        tokens=asked.tokens,
        rounds=asked.rounds,
        on_round=on_call,
    )
