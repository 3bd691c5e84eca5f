"""Time a decoder as it writes: the reference loop on ONNX Runtime's CPU, greedily, with random prompts.

An encoder with its decoder is timed the same way, with random sources. In a process of its own, so that
starting and memory are those of a service. Nothing is compared here; times of one machine in one run, beside
what that machine can do at best.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.bench.generation_job import BatchingJob
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
ENCODER_PORT = "encoder"
SAMPLES_PORT = "samples"

Positive = Annotated[int, Field(ge=1)]


class ServerScenario(StageConfig):
    """Requests that come at random times, and what they are promised; see `pipeline.bench.server`."""

    requests_per_s: Annotated[float, Field(gt=0)] = Field(
        description="how many requests come on average; each has a prompt and new tokens as timed"
    )
    ttft_ms: Annotated[float, Field(gt=0)] = Field(
        description="objective: the first token is there by then, waiting included"
    )
    tpot_ms: Annotated[float, Field(gt=0)] = Field(
        description="objective: time for each token behind the first"
    )
    requests: Annotated[int, Field(ge=2)] = Field(default=32, description="how many come")
    batch: Positive = Field(default=8, description="how many are served together at most")
    seed: int = Field(default=0, description="of the times at which they come")
    generator: Literal["own", "loadgen"] = Field(
        default="own",
        description="who asks: we, or MLPerf's LoadGen (extra `loadgen`), whose own summary is kept too",
    )


class BatchingScenario(StageConfig):
    """The evaluation texts as they come and in order of length; see `pipeline.bench.sorted_batching`."""

    texts: Annotated[int, Field(ge=2)] = Field(default=16, description="how many, the first ones")
    batch: Annotated[int, Field(ge=2)] = Field(default=4, description="how many at a time")
    rounds: Annotated[int, Field(ge=2)] = Field(
        default=5, description="how often both orders are timed, in turn"
    )


class TimedBatching(BatchingScenario):
    """With what the rest of the recipe says.

    Attributes:
        tokens: New tokens of each text.
        longest: Tokens of a prompt or source at most; what lies behind them is cut off.
    """

    tokens: Positive
    longest: Positive


class BenchmarkGenerationConfig(StageConfig):
    """What is timed.

    Attributes:
        optimizations: As in `validate`.
        works: (texts at a time, prompt tokens, new tokens) of each.
        calls: How often each is timed, after one call that is not.
        server: With the prompt and the new tokens of the first of `works`; None leaves it out, as of
            encoders with decoders.
        batching: Reads the port `samples`; None leaves it out.
    """

    optimizations: Literal["disabled", "all"]
    works: Annotated[tuple[tuple[Positive, Positive, Positive], ...], Field(min_length=1)]
    calls: Positive = 3
    server: ServerScenario | None = None
    batching: TimedBatching | None = None


def run(
    config: BenchmarkGenerationConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Facts: `times`, a record for each work, what starting costs, and the formulas beside the names.

    Raises:
        StageError: when ONNX Runtime cannot run a graph, or it is no decoder with a cache.
    """
    from pipeline.bench.generation_job import GenerationJob, ServerJob
    from pipeline.bench.generation_launcher import launch_generation
    from pipeline.bench.generation_metrics import FORMULAS, utilization
    from pipeline.bench.machine_peaks import measure_peaks
    from pipeline.bench.pair_metrics import PAIR_FORMULAS, pair_utilization
    from pipeline.bench.server import SERVER_FORMULAS
    from pipeline.bench.sorted_batching import BATCHING_FORMULAS
    from pipeline.graph.token_costs import token_costs

    del output
    model = inputs[MODEL_PORT] / MODEL_FILE
    encoder = inputs[ENCODER_PORT] / MODEL_FILE if ENCODER_PORT in inputs else None
    costs = token_costs(model)
    before = measure_peaks(context.threads)
    job = GenerationJob(
        model=str(model.resolve()),
        encoder=str(encoder.resolve()) if encoder else "",
        optimizations=config.optimizations,
        threads=context.threads,
        works=config.works,
        calls=config.calls,
        server=ServerJob(**config.server.model_dump()) if config.server else None,
        batching=_batching(config.batching, inputs) if config.batching else None,
        spawned_s=0.0,
    )
    rounds = 1 + config.batching.rounds if config.batching else 0
    total = len(config.works) * (1 + config.calls) + rounds
    calls = itertools.count(1)
    record = launch_generation(
        job,
        context.scratch,
        on_call=lambda: context.progress(next(calls), total, "calls"),
    )
    # Once more, lest shares be of what a machine could do while it was busy with something else.
    best = measure_peaks(context.threads).or_better(before)
    peaks = {
        "read_bytes_per_s": best.read_bytes_per_s,
        "float32_flops_per_s": best.float32_flops_per_s,
    }

    def used(times: Mapping[str, Any]) -> dict[str, JSON]:
        if encoder is None:
            return utilization(
                times, weight_bytes=costs.weight_bytes, flops=costs.flops, peaks=peaks
            )
        return pair_utilization(times, weight_bytes=costs.weight_bytes, peaks=peaks)

    return {
        "session": record.session,
        "threads": context.threads,
        "load_s": record.load_s,
        "cold_start_s": record.cold_start_s,
        "peak_rss_mib": record.peak_rss_mib,
        "cache_bytes_per_token": record.cache_bytes_per_token,
        "weight_bytes": costs.weight_bytes,
        "flops_per_token": costs.flops,
        **peaks,
        "times": [{**each, **used(each)} for each in record.times],
        "server": [] if record.server is None else [record.server],
        "batching": [] if record.batching is None else [record.batching],
        "formulas": {
            **(PAIR_FORMULAS if encoder else FORMULAS),
            **(SERVER_FORMULAS if record.server else {}),
            **(BATCHING_FORMULAS if record.batching else {}),
        },
    }


def _batching(asked: TimedBatching, inputs: Mapping[str, Path]) -> BatchingJob:
    """The tokens of the first evaluation texts."""
    from pipeline.bench.generation_job import BatchingJob
    from pipeline.data.sample_set import load_samples

    samples = load_samples(inputs[SAMPLES_PORT])
    chosen = range(min(asked.texts, len(samples)))
    return BatchingJob(
        texts=tuple(
            tuple(sample["input_ids"][: asked.longest].tolist()) for sample in samples.read(chosen)
        ),
        **asked.model_dump(include={"batch", "tokens", "rounds"}),
    )


BENCHMARK_GENERATION = Stage(
    name="benchmark_generation",
    version=5,
    footprint=Footprint(base_mib=150, memory_per_weight=2.0),
    config_type=BenchmarkGenerationConfig,
    run=run,
    packages=("numpy", "onnx", "onnx-ir", "onnxruntime", "scipy"),
    extra="cpu",
    optional_packages=("mlcommons-loadgen",),
    machine=("cpu_model", "cpu_flags", "cores"),
    preload=("numpy", "pipeline.graph.token_costs"),
    is_exclusive=True,
)
"""Ports `model`, of an encoder with a decoder also `encoder` (`model` is then the decoder), and `samples` for
`batching` -> facts only."""
