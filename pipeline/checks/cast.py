"""The cast to 16 bits itself: graph and numbers against what they were cast from, exactly.

The noise of float16 is a thousand times that of float32, and hides small faults: a GELU of tanh for
one of erf (2.8e-4 on a ViT whose float16 has 6.5e-4), a matrix that is 2 % off, weights that went through
bfloat16. So everything must be as it was, and every number the float32 one, rounded once: both
counts are 0 for good casts of MiniLM and four trained models, and for each of these faults are not. So
they are for bfloat16, whose noise is eight times that of float16 (MiniLM and a small encoder).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.checks.differences import judge_differences
from pipeline.stages.cast import CastConfig
from pipeline.stages.check_cast import CHECK_CAST, FLOAT_PORT, MODEL_PORT, CheckCastConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME = "cast"

Count = Annotated[int, Field(ge=0)] | None


class CastLimits(Limits):
    """How many differences besides the type there may be; null only counts them."""

    changed_nodes: Count = Field(
        default=0, description="differences between the graphs besides casts"
    )
    changed_constants: Count = Field(
        default=0, description="stored numbers that are not the float32 ones, rounded once"
    )


_MEANING: Final = {
    "changed_nodes": "the graph changed besides its types",
    "changed_constants": "numbers changed besides their rounding",
}


def _plan(subject: Subject, limits: CastLimits) -> Iterator[PlannedCheck]:
    """Of every graph that was cast."""
    del limits
    for link in subject.links:
        if isinstance(link.config, CastConfig):
            ports = {MODEL_PORT: link.node, FLOAT_PORT: link.inputs["model"]}
            yield PlannedCheck(link=link, config=CheckCastConfig(), inputs=ports)


def _judge(measured: Measured, limits: CastLimits) -> tuple[GateResult, ...]:
    return judge_differences(NAME, measured, limits, _MEANING)


CAST_CHECK = Check(name=NAME, stage=CHECK_CAST, plan=_plan, judge=_judge)
