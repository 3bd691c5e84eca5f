"""Time a decoder as it writes: the reference loop on ONNX Runtime's CPU, greedily, with random prompts.

Nothing is compared here; times of one machine in one run, for people to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"

Positive = Annotated[int, Field(ge=1)]


class BenchmarkGenerationConfig(StageConfig):
    """What is timed.

    Attributes:
        optimizations: As in `validate`.
        works: (texts at a time, prompt tokens, new tokens) of each.
        calls: How often each is timed, after one call that is not.
    """

    optimizations: Literal["disabled", "all"]
    works: Annotated[tuple[tuple[Positive, Positive, Positive], ...], Field(min_length=1)]
    calls: Positive = 3


def run(
    config: BenchmarkGenerationConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Facts: `times`, a record for each work, with the formulas beside the names.

    Raises:
        StageError: when ONNX Runtime cannot run the graph, or it is no decoder with a cache.
    """
    from pipeline.bench.generation_metrics import FORMULAS, Work, summarize, time_generation
    from pipeline.runtimes.ort_decoder import OrtDecoder

    del output
    works = [Work(batch=batch, prompt=prompt, tokens=new) for batch, prompt, new in config.works]
    times: list[JSON] = []
    done, total = 0, len(works) * (1 + config.calls)
    with OrtDecoder(
        inputs[MODEL_PORT] / MODEL_FILE,
        optimizations=config.optimizations,
        threads=context.threads,
    ) as decoder:
        for work in works:
            calls = []
            for _ in range(1 + config.calls):
                calls.append(time_generation(decoder, work))
                done += 1
                context.progress(done, total, "calls")
            times.append(summarize(calls[1:], decoder.bytes_per_token))
        session = decoder.session
    return {
        "session": session,
        "threads": context.threads,
        "times": times,
        "formulas": dict(FORMULAS),
    }


BENCHMARK_GENERATION = Stage(
    name="benchmark_generation",
    version=1,
    footprint=Footprint(base_mib=150, memory_per_weight=2.0),
    config_type=BenchmarkGenerationConfig,
    run=run,
    packages=("numpy", "onnxruntime"),
    extra="cpu",
    machine=("cpu_model", "cpu_flags", "cores"),
    preload=("numpy", "onnxruntime"),
    is_exclusive=True,
)
"""Port `model` -> facts only."""
