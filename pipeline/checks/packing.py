"""The packing of weights in few bits: graph and numbers against what packing must make, exactly.

`MatMulNBits` reads integers and scales in another layout, and nothing is rounded. What 4 bits may cost hides
a fault of one layer: scales exchanged between neighbouring blocks pass every gate on outputs. So what is
stored must be, node by node and bit by bit, what packing makes of the quantised graph; both counts are 0 for
good ones, because packing is deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.checks.differences import judge_differences
from pipeline.stages.check_packing import (
    CHECK_PACKING,
    MODEL_PORT,
    PLAIN_PORT,
    CheckPackingConfig,
)
from pipeline.stages.pack_weights import PackWeightsConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME = "packing"

Count = Annotated[int, Field(ge=0)] | None


class PackingLimits(Limits):
    """How many differences from what packing must make there may be; null only counts them."""

    changed_nodes: Count = Field(
        default=0, description="nodes that are not those that packing makes"
    )
    changed_constants: Count = Field(
        default=0, description="stored tensors that differ in a bit from what packing makes"
    )


_MEANING: Final = {
    "changed_nodes": "the graph changed besides its packing",
    "changed_constants": "numbers changed when they were packed",
}


def _plan(subject: Subject, limits: PackingLimits) -> Iterator[PlannedCheck]:
    """Of every graph whose weights were packed."""
    del limits
    for link in subject.links:
        if isinstance(link.config, PackWeightsConfig):
            yield PlannedCheck(
                link=link,
                config=CheckPackingConfig(accuracy_level=link.config.accuracy_level),
                inputs={MODEL_PORT: link.node, PLAIN_PORT: link.inputs["model"]},
            )


def _judge(measured: Measured, limits: PackingLimits) -> tuple[GateResult, ...]:
    return judge_differences(NAME, measured, limits, _MEANING)


PACKING = Check(name=NAME, stage=CHECK_PACKING, plan=_plan, judge=_judge)
