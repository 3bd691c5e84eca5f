"""What lies beside a model from elsewhere must be the checkpoint's.

A right graph that is fed other tokens, or whose classes are named in another order, is wrong all the
same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.parity.types import GateResult
from pipeline.stages.adopt import CANDIDATE_PORT, AdoptConfig
from pipeline.stages.check_companions import (
    CHECK_COMPANIONS,
    CHECKPOINT_PORT,
    COMPANIONS_PORT,
    SAMPLES_PORT,
    CheckCompanionsConfig,
)
from pipeline.targets.base import SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "companions"


class CompanionLimits(Limits):
    """Parts that may differ."""

    ignore: tuple[
        Literal["tokenizer", "padding", "processor", "config", "labels", "pooling", "ending"], ...
    ] = Field(default=(), description="parts that may differ from the checkpoint's")


def _plan(subject: Subject, limits: CompanionLimits) -> Iterator[PlannedCheck]:
    del limits
    for link in subject.links:
        if not isinstance(link.config, AdoptConfig) or not link.config.companions:
            continue
        candidate = link.inputs[CANDIDATE_PORT]
        assert isinstance(candidate, SourceRef)
        yield PlannedCheck(
            link=link,
            config=CheckCompanionsConfig(task=subject.task.name),
            inputs={
                COMPANIONS_PORT: SourceRef(candidate.group.replace(":model:", ":companions:", 1)),
                CHECKPOINT_PORT: SourceRef("companions"),
                SAMPLES_PORT: subject.samples,
            },
        )


def _judge(measured: Measured, limits: CompanionLimits) -> tuple[GateResult, ...]:
    return tuple(
        GateResult(
            gate=NAME,
            target=measured.target,
            metric=f"{part['part']}.different",
            measured=float(part["different"]),
            limit="<= 0",
            verdict="failed" if part["different"] else "passed",
            reason=f"{part['different']} of {part['compared']} differ, the first: {part['first']}"
            if part["different"]
            else "",
            is_allowed=not part["different"],
            is_proxy=measured.is_proxy,
            node=measured.node,
        )
        for part in measured.facts["parts"]
        if part["part"] not in limits.ignore
    )


COMPANIONS_CHECK = Check(name=NAME, stage=CHECK_COMPANIONS, plan=_plan, judge=_judge)
"""Of models that were taken in with their files."""
