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
    ServerScenario,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME: Final = "generation_speed"


class ServerLimits(ServerScenario, Limits):
    """The server scenario, and how much of it must be good."""

    goodput_per_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="fewest requests a second within both objectives; default: only measured",
    )


class GenerationSpeedLimits(Limits):
    """What is timed, and how slow or large it may be.

    Attributes:
        tokens: New tokens of each text.
        decode_tokens_per_s, ttft_ms, tpot_ms: Of every batch that is timed.
        cold_start_s, peak_rss_mib: Of a new process.
        server: Requests at random times.
    """

    tokens: Annotated[int, Field(ge=2)] = Field(default=32, description="new tokens of each text")
    decode_tokens_per_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="fewest tokens a second behind the first, all texts of a batch together; "
        "default: only measured",
    )
    ttft_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="longest time to the first token; default: only measured"
    )
    tpot_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="longest time for each token behind the first; default: only measured",
    )
    cold_start_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="longest time from the start of a process to its first token; default: only "
        "measured",
    )
    peak_rss_mib: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="most memory of that process; default: only measured"
    )
    server: ServerLimits | None = Field(
        default=None,
        description="requests that come at random times, and how many a second must be served in "
        "time; default: not measured",
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
            server=_scenario(limits.server),
        ),
        inputs={MODEL_PORT: link.node},
    )


def _scenario(limits: ServerLimits | None) -> ServerScenario | None:
    """What is measured, without what must come of it: a limit alone must not measure again."""
    if limits is None:
        return None
    return ServerScenario(**limits.model_dump(exclude={"goodput_per_s"}))


def _judge(measured: Measured, limits: GenerationSpeedLimits) -> tuple[GateResult, ...]:
    facts = measured.facts
    results = []
    for found in facts["times"]:
        name = f"{found['batch']}x{found['prompt']}+{found['tokens']}"
        results += [
            _least(
                measured,
                f"decode_tokens_per_s.{name}",
                found["decode_tokens_per_s"],
                limits.decode_tokens_per_s,
            ),
            _most(measured, f"ttft_ms.{name}", found["ttft_ms"], limits.ttft_ms),
            _most(measured, f"tpot_ms.{name}", found["tpot_ms"], limits.tpot_ms),
        ]
    for name in ("cold_start_s", "peak_rss_mib"):
        results.append(_most(measured, name, facts[name], getattr(limits, name)))
    for found in facts["server"]:
        least = limits.server.goodput_per_s if limits.server else None
        results.append(_least(measured, "goodput_per_s", found["goodput_per_s"], least))
    return tuple(results)


def _least(measured: Measured, metric: str, value: float, least: float | None) -> GateResult:
    limit = MEASURED if least is None else f">= {least:g}"
    is_good = least is None or value >= least
    return measured.result(NAME, metric, value, limit, "" if is_good else f"it is {value:.4g}")


def _most(measured: Measured, metric: str, value: float | None, most: float | None) -> GateResult:
    limit = MEASURED if most is None else f"<= {most:g}"
    reason = ""
    if most is not None and value is None:
        reason = "it could not be measured on this system"
    elif most is not None and value is not None and value > most:
        reason = f"it is {value:.4g}"
    return measured.result(NAME, metric, value, limit, reason)


GENERATION_SPEED = Check(name=NAME, stage=BENCHMARK_GENERATION, plan=_plan, judge=_judge)
