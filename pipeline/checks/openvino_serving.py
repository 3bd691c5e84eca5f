"""How a delivered decoder does in OpenVINO GenAI: measured when a recipe asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.checks.generation import MEASURED, TASK
from pipeline.stages.benchmark_openvino import (
    BENCHMARK_OPENVINO,
    CHECKPOINT_PORT,
    DRAFT_PORT,
    MODEL_PORT,
    QUESTION,
    SAMPLES_PORT,
    BenchmarkOpenVinoConfig,
)
from pipeline.targets.base import SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.parity.types import GateResult
    from pipeline.targets.base import Ref

NAME: Final = "openvino_serving"
DRAFT_NAME: Final = ":draft"
"""Under which a plan knows the draft; no target has such a name."""

Ratio = Annotated[float, Field(gt=0)]


class OpenVinoServingLimits(Limits):
    """What is measured, and what must come of it.

    Attributes:
        draft: A smaller model with the same vocabulary.
        prefix: Tokens that all questions share.
    """

    requests: Annotated[int, Field(ge=2)] = Field(
        default=16, description="how many there are, of mixed lengths"
    )
    tokens: Annotated[int, Field(ge=2)] = Field(
        default=32, description="most new tokens of a request"
    )
    prefix: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="tokens that all questions begin with; default: three quarters of the longest "
        "sequence",
    )
    rounds: Annotated[int, Field(ge=2)] = Field(
        default=5, description="how often each way is timed"
    )
    cache_gib: Annotated[int, Field(ge=1)] = Field(
        default=1, description="size of the cache of blocks"
    )
    draft: str | None = Field(
        default=None,
        description="a target's folder of an artifact, or an ONNX decoder, whose model proposes tokens; "
        "it has the same vocabulary. Default: nothing is proposed",
        examples=["artifacts/small/latest/cpu-int4"],
    )
    assistant_tokens: Annotated[int, Field(ge=1)] = Field(
        default=4, description="how many tokens the draft proposes at a time"
    )
    throughput_ratio: Ratio | None = Field(
        default=None,
        description="least throughput of continuous batching over static batches; default: only measured",
    )
    one_batch_ratio: Ratio | None = Field(
        default=None,
        description="the same against one static batch of all requests; default: only measured",
    )
    prefix_speedup: Ratio | None = Field(
        default=None,
        description="least speed-up of first tokens by the prefix cache; default: only measured",
    )
    acceptance_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="least share of the draft's tokens that are accepted; default: only measured",
    )
    draft_speedup: Ratio | None = Field(
        default=None, description="least speed-up by the draft; default: only measured"
    )

    def prefix_of(self, longest: int) -> int:
        """The prefix, or what is left of the longest sequence when questions have their place."""
        if self.prefix is not None:
            return self.prefix
        return max(1, min(3 * longest // 4, longest - 2 * QUESTION))


def _plan(subject: Subject, limits: OpenVinoServingLimits) -> Iterator[PlannedCheck]:
    """Of the delivered graph of a decoder."""
    if subject.task.name != TASK:
        return
    link = subject.links[-1]
    inputs: dict[str, Ref] = {
        MODEL_PORT: link.node,
        CHECKPOINT_PORT: SourceRef("checkpoint"),
        SAMPLES_PORT: subject.samples,
    }
    if limits.draft is not None:
        inputs[DRAFT_PORT] = SourceRef(f"candidate:model:{DRAFT_NAME}")
    yield PlannedCheck(
        link=link,
        config=BenchmarkOpenVinoConfig(
            requests=limits.requests,
            batch=subject.profile["batch"][1],
            prompt=subject.profile["sequence"][1],
            tokens=limits.tokens,
            prefix=limits.prefix_of(subject.profile["sequence"][2]),
            rounds=limits.rounds,
            assistant_tokens=limits.assistant_tokens,
            cache_gib=limits.cache_gib,
        ),
        inputs=inputs,
    )


def _judge(measured: Measured, limits: OpenVinoServingLimits) -> tuple[GateResult, ...]:
    return tuple(_results(measured, limits))


def _results(measured: Measured, limits: OpenVinoServingLimits) -> Iterator[GateResult]:
    facts = measured.facts
    for problem in facts["problems"]:
        yield measured.result(NAME, "problems", float(len(facts["problems"])), "<= 0", problem)
    if facts["problems"]:
        return
    for part, ratio in (
        ("batching", "throughput_ratio"),
        ("one_batch", "one_batch_ratio"),
        ("prefix", "prefix_speedup"),
        ("speculative", "draft_speedup"),
    ):
        found = facts[part]
        if found is None:
            continue
        yield _same_tokens(measured, part, found)
        yield _least(measured, ratio, found[ratio]["value"], getattr(limits, ratio))
    if facts["speculative"] is not None:
        rate = facts["speculative"]["acceptance_rate"]
        yield _least(measured, "acceptance_rate", rate, limits.acceptance_rate)


def _same_tokens(measured: Measured, part: str, found: Mapping[str, object]) -> GateResult:
    """Every way to write a text gives the same tokens: all sums are in float32."""
    parted = found["differences"]
    assert isinstance(parted, (list, tuple))
    reason = ""
    if parted:
        first = parted[0]
        reason = (
            f"{len(parted)} of {found['compared']} texts differ; text {first['request']} from its new "
            f"token {first['at']} on: {list(first['base'])} and {list(first['other'])}"
        )
    return measured.result(NAME, f"different_texts.{part}", float(len(parted)), "<= 0", reason)


def _least(measured: Measured, metric: str, value: float, least: float | None) -> GateResult:
    limit = MEASURED if least is None else f">= {least:g}"
    is_good = least is None or value >= least
    return measured.result(NAME, metric, value, limit, "" if is_good else f"it is {value:.4g}")


OPENVINO_SERVING = Check(name=NAME, stage=BENCHMARK_OPENVINO, plan=_plan, judge=_judge)
