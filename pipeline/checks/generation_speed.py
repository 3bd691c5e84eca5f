"""How fast a delivered decoder writes: measured when a recipe asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.checks.generation import MEASURED, TASK
from pipeline.stages.benchmark_generation import (
    BENCHMARK_GENERATION,
    MODEL_PORT,
    BenchmarkGenerationConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME: Final = "generation_speed"


class GenerationSpeedLimits(Limits):
    """What is timed, and how slow it may be.

    Attributes:
        tokens: New tokens of each text.
        decode_tokens_per_s: Of every batch that is timed.
    """

    tokens: Annotated[int, Field(ge=2)] = Field(default=32, description="new tokens of each text")
    decode_tokens_per_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="fewest tokens a second behind the first, all texts of a batch together; "
        "default: only measured",
    )


def _plan(subject: Subject, limits: GenerationSpeedLimits) -> Iterator[PlannedCheck]:
    """Of the delivered graph of a decoder, for one text and for the usual batch."""
    if subject.task.name != TASK:
        return
    link = subject.links[-1]
    batch, prompt = subject.profile["batch"][1], subject.profile["sequence"][1]
    yield PlannedCheck(
        link=link,
        config=BenchmarkGenerationConfig(
            optimizations=link.model.optimizations,
            works=tuple((rows, prompt, limits.tokens) for rows in sorted({1, batch})),
        ),
        inputs={MODEL_PORT: link.node},
    )


def _judge(measured: Measured, limits: GenerationSpeedLimits) -> tuple[GateResult, ...]:
    least = limits.decode_tokens_per_s
    results = []
    for found in measured.facts["times"]:
        name = f"{found['batch']}x{found['prompt']}+{found['tokens']}"
        speed = found["decode_tokens_per_s"]
        is_good = least is None or speed >= least
        reason = "" if is_good else f"it writes {speed:.4g} tokens a second"
        limit = MEASURED if least is None else f">= {least:g}"
        results.append(measured.result(NAME, f"decode_tokens_per_s.{name}", speed, limit, reason))
    return tuple(results)


GENERATION_SPEED = Check(name=NAME, stage=BENCHMARK_GENERATION, plan=_plan, judge=_judge)
