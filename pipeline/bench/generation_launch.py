"""Times one decoder in a process of its own: `python -m pipeline.bench.generation_launch JOB RECORD`.

It starts from nothing, so that the time to the first token and the memory are those of a service that
has just been started. Each finished call is a line on standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench.generation_job import GenerationJob, GenerationRecord
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bench.generation_job import BatchingJob
    from pipeline.runtimes.decoder import Decoder


def main(arguments: list[str]) -> int:
    """Read the job, measure, write the record; the exit status."""
    job_file, record_file = map(Path, arguments)
    job = GenerationJob.model_validate_json(job_file.read_bytes())
    try:
        record = measure(job)
    except PipelineError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    record_file.write_text(record.model_dump_json(), encoding="utf-8")
    return 0


def measure(job: GenerationJob) -> GenerationRecord:
    """Load, write the first token, then time everything that is asked for.

    Raises:
        StageError: when ONNX Runtime cannot run the graph, or it is no decoder with a cache.
    """
    if job.encoder:
        from pipeline.bench.pair_measuring import measure_pair

        return measure_pair(job, on_call=_tell_call, peak_rss_mib=peak_rss_mib)
    # After the clock has started: their imports are part of a cold start.
    from pipeline.bench.generation_metrics import Work, summarize, time_generation
    from pipeline.bench.loadgen import serve_as_asked
    from pipeline.bench.server import summarize_server
    from pipeline.runtimes.ort_decoder import OrtDecoder

    works = [Work(batch=batch, prompt=prompt, tokens=new) for batch, prompt, new in job.works]
    begun = time.perf_counter()
    with OrtDecoder(
        Path(job.model), optimizations=job.optimizations, threads=job.threads
    ) as decoder:
        load_s = time.perf_counter() - begun
        time_generation(decoder, Work(batch=1, prompt=works[0].prompt, tokens=1))
        cold_start_s = time.monotonic() - job.spawned_s
        times = []
        for work in works:
            calls = []
            for _ in range(1 + job.calls):
                calls.append(time_generation(decoder, work))
                _tell_call()
            times.append(summarize(calls[1:], decoder.bytes_per_token))
        server = None
        if job.server is not None:
            asked = job.server
            each = Work(batch=asked.batch, prompt=works[0].prompt, tokens=works[0].tokens)
            served, said = serve_as_asked(decoder, each, asked)
            server = {
                "requests_per_s": asked.requests_per_s,
                "batch": asked.batch,
                **summarize_server(served, ttft_ms=asked.ttft_ms, tpot_ms=asked.tpot_ms),
                **said,
            }
        batching = _orders(decoder, job.batching) if job.batching else None
        return GenerationRecord(
            session=decoder.session,
            load_s=load_s,
            cold_start_s=cold_start_s,
            peak_rss_mib=peak_rss_mib(),
            cache_bytes_per_token=decoder.bytes_per_token,
            times=tuple(times),
            server=server,
            batching=batching,
        )


def _orders(decoder: Decoder, asked: BatchingJob) -> dict[str, Any]:
    """Prompts of unlike lengths, as they come and sorted."""
    from pipeline.bench.sorted_batching import compare_orders
    from pipeline.runtimes.generation import GenerationOptions, generate

    def write(places: Sequence[int]) -> None:
        prompts = [asked.texts[at] for at in places]
        generate(decoder, prompts, GenerationOptions(tokens=asked.tokens))

    return compare_orders(
        write,
        [len(text) for text in asked.texts],
        batch=asked.batch,
        tokens=asked.tokens,
        rounds=asked.rounds,
        on_round=_tell_call,
    )


def _tell_call() -> None:
    sys.stdout.write("call\n")
    sys.stdout.flush()


def peak_rss_mib() -> float | None:
    """Of this program alone: `getrusage` would count what started it too (Linux keeps it over exec)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kib is None else int(kib) / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
