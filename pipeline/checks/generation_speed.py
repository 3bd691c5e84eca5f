"""How fast a delivered decoder writes, behind an encoder too: measured when a recipe asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.checks.generation import MEASURED, TASK
from pipeline.errors import RecipeError
from pipeline.stages.benchmark_generation import (
    BENCHMARK_GENERATION,
    ENCODER_PORT,
    MODEL_PORT,
    SAMPLES_PORT,
    BatchingScenario,
    BenchmarkGenerationConfig,
    Positive,
    ServerScenario,
    TimedBatching,
)
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult
    from pipeline.targets.base import Ref

NAME: Final = "generation_speed"
NewTokens = Annotated[int, Field(ge=2)]
"""Two or more, so that one has another before it."""


class ServerLimits(ServerScenario, Limits):
    """The server scenario, and how much of it must be good."""

    goodput_per_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="fewest requests a second within both objectives; default: only measured",
    )


class BatchingLimits(BatchingScenario, Limits):
    """The texts in two orders, and what sorting must bring."""

    sorted_over_unsorted: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="least throughput in order of length over that as texts come, by the lower end "
        "of its interval; default: only measured",
    )


class GenerationSpeedLimits(Limits):
    """What is timed, and how slow or large it may be.

    Attributes:
        tokens: New tokens of each text.
        shapes: Texts at a time, tokens of each prompt or source, and new tokens; None is `works` of the usual.
        decode_tokens_per_s, ttft_ms, tpot_ms: Of every batch that is timed.
        cold_start_s, peak_rss_mib: Of a new process.
        server: Requests at random times.
        batching: The evaluation texts as they come and in order of length.
    """

    tokens: NewTokens = Field(default=32, description="new tokens of each text")
    shapes: (
        Annotated[tuple[tuple[Positive, Positive, NewTokens], ...], Field(min_length=1)] | None
    ) = Field(
        default=None,
        description="[batch, tokens of the prompt, new tokens] of each that is timed; default: one "
        "text and the usual batch, both with a prompt of the usual length and `tokens` new ones",
        examples=[[[1, 32, 64], [8, 128, 16]]],
    )
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
    batching: BatchingLimits | None = Field(
        default=None,
        description="the evaluation texts in batches as they come and in order of length; default: not "
        "measured",
    )

    def works(self, batch: int, prompt: int) -> tuple[tuple[int, int, int], ...]:
        """(texts at a time, tokens of each prompt or source, new tokens) of each that is timed.

        Args:
            batch: The usual number of texts.
            prompt: The usual length.
        """
        if self.shapes is not None:
            return tuple(dict.fromkeys(self.shapes))
        return tuple((rows, prompt, self.tokens) for rows in sorted({1, batch}))


def _plan(subject: Subject, limits: GenerationSpeedLimits) -> Iterator[PlannedCheck]:
    """Of the delivered graphs, for what `shapes` says, or for one text and for the usual batch.

    Raises:
        RecipeError: the server is asked for behind an encoder, or sounds are to be sorted.
    """
    is_pair = bool(subject.task.parts)
    if subject.task.name != TASK and not (is_pair and subject.component == DECODER):
        return
    link = subject.links[-1]
    inputs: dict[str, Ref] = {MODEL_PORT: link.node}
    samples: Ref | None = subject.samples
    if is_pair:
        _refuse(subject, limits)
        inputs[ENCODER_PORT] = subject.models[ENCODER][-1].node
        samples = subject.sources
    if limits.batching is not None and samples is not None:
        inputs[SAMPLES_PORT] = samples
    batch, prompt = subject.profile["batch"][1], subject.profile["sequence"][1]
    # A decoder's own texts end where its sequence does, new tokens included.
    room = subject.profile["sequence"][2] - (0 if is_pair else limits.tokens)
    yield PlannedCheck(
        link=link,
        config=BenchmarkGenerationConfig(
            optimizations=link.model.optimizations,
            works=limits.works(batch, prompt),
            server=_scenario(limits.server),
            batching=_batching(limits, max(1, room)),
        ),
        inputs=inputs,
    )


def _refuse(subject: Subject, limits: GenerationSpeedLimits) -> None:
    """What is not measured behind an encoder.

    Raises:
        RecipeError: it is asked for.
    """
    name = subject.task.name
    if limits.server is not None:
        raise RecipeError(
            f"`generation_speed.server` is of decoders alone, and not of task `{name}`",
            hint="leave `server` out",
        )
    if limits.batching is not None and subject.task.modality == "audio":
        raise RecipeError(
            f"`generation_speed.batching` sorts by length, and to task `{name}` all sounds are of one",
            hint="leave `batching` out",
        )


def _batching(limits: GenerationSpeedLimits, longest: int) -> TimedBatching | None:
    if limits.batching is None:
        return None
    asked = limits.batching.model_dump(exclude={"sorted_over_unsorted"})
    return TimedBatching(**asked, tokens=limits.tokens, longest=longest)


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
    for found in facts["batching"]:
        least = limits.batching.sorted_over_unsorted if limits.batching else None
        low, high = found["interval"]
        figures = {
            "batching.unsorted_tokens_per_s": found["unsorted_tokens_per_s"],
            "batching.sorted_tokens_per_s": found["sorted_tokens_per_s"],
            "batching.sorted_over_unsorted": found["sorted_over_unsorted"],
            "batching.sorted_over_unsorted.high": high,
        }
        results += [_least(measured, name, value, None) for name, value in figures.items()]
        results.append(_least(measured, "batching.sorted_over_unsorted.low", low, least))
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
