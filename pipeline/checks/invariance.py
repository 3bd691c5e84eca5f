"""The same sample must come out the same, whatever else is in the batch and however it is padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.parity.tolerances import TOLERANCES
from pipeline.parity.types import GateResult
from pipeline.stages.invariance import INVARIANCE as STAGE
from pipeline.stages.invariance import InvarianceConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "invariance"


class InvarianceLimits(Limits):
    """How much a sample may change with its neighbours and its padding.

    Attributes:
        noise: For every target in place of the derived limit.
    """

    noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest RMSE over the size of the output; default: what the arithmetic allows, "
        "and for 8 bits only measured",
    )


def _plan(subject: Subject, limits: InvarianceLimits) -> Iterator[PlannedCheck]:
    """Of the first graph and of the delivered one: what lies between is compared with the checkpoint."""
    del limits
    for link in {link.node: link for link in (subject.links[0], subject.links[-1])}.values():
        yield PlannedCheck(
            link=link,
            config=InvarianceConfig(
                optimizations=link.model.optimizations,
                extents=dict(subject.profile),
            ),
            inputs={"model": link.node, "samples": subject.samples},
        )


def _judge(measured: Measured, limits: InvarianceLimits) -> tuple[GateResult, ...]:
    results = []
    for case in measured.facts["cases"]:
        floor = measured.floors.get(case["output"])
        limit = limits.noise
        if limit is None and measured.arithmetic != "quantized":
            floor_value = max(floor.float64, floor.threads) if floor else 0.0
            limit = TOLERANCES[measured.arithmetic].limit(floor_value)
        noise = case["noise"]
        is_good = limit is None or (noise is not None and noise <= limit)
        results.append(
            GateResult(
                gate=NAME,
                target=measured.target,
                metric=f"{measured.stage}.{case['output']}.{case['case']}",
                measured=noise,
                limit="only measured" if limit is None else f"<= {limit:.3g}",
                verdict="passed" if is_good else "failed",
                reason="" if is_good else f"sample {case['sample']} comes out differently",
                is_allowed=is_good,
                is_proxy=measured.is_proxy,
                node=measured.node,
            )
        )
    return tuple(results)


INVARIANCE = Check(name=NAME, stage=STAGE, plan=_plan, judge=_judge)
