"""No value of a float16 graph may come near 65504, where float16 ends.

A device that computes in float16 makes infinity of what is larger, and NaN of that soon after. A
comparison on a CPU shows it only by chance: ONNX Runtime computes most float16 nodes in float32 there,
and rounds no value that lies between two of them.

A headroom below 1 is an overflow that was seen. Twice is asked for because users have other data
than the samples. Measured on MiniLM and the four small trained models: from 64 samples to all others
no value grew by more than 1.66, the largest of a model by 1.32 (from 8 samples: 3.2 and 2.0). Their
headrooms are 100 (MiniLM: scores of attention before they are scaled) to 1050.

bfloat16 reaches as far as float32, and needs no such check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.stages.headroom import HEADROOM as STAGE
from pipeline.stages.headroom import HeadroomConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pipeline.parity.types import GateResult

NAME = "headroom"
OVERFLOW: Final = 1.0


class HeadroomLimits(Limits):
    """How far below the end of float16 the largest value must stay.

    Attributes:
        min: The least `65504 / max |x|` over all values in float16.
    """

    min: Annotated[float, Field(ge=1)] = Field(
        default=2.0,
        description="least 65504 / max |x| over all values in float16, samples and probes; below 1 "
        "they are infinite",
    )


def _plan(subject: Subject, limits: HeadroomLimits) -> Iterator[PlannedCheck]:
    """Of every graph that computes in float16; those made of it by quantising have the same values."""
    del limits
    for link in subject.links:
        if link.model.arithmetic == "float16":
            yield PlannedCheck(
                link=link,
                config=HeadroomConfig(),
                inputs={
                    "model": link.node,
                    "export": subject.links[0].node,
                    "samples": subject.samples,
                    "probes": subject.probes,
                },
            )


def _judge(measured: Measured, limits: HeadroomLimits) -> tuple[GateResult, ...]:
    return tuple(_results(measured, limits))


def _results(measured: Measured, limits: HeadroomLimits) -> Iterator[GateResult]:
    facts = measured.facts
    for problem in facts["problems"]:
        yield measured.result(NAME, "problems", float(len(facts["problems"])), "<= 0", problem)
    if weights := facts["infinite_weights"]:
        reason = f"weights are infinite: {', '.join(f'`{name}`' for name in weights[:3])}"
        yield measured.result(NAME, "infinite_weights", float(len(weights)), "<= 0", reason)
    for value in facts["values"][:1]:
        headroom = value["headroom"]  # None when all values are 0
        is_good = headroom is None or headroom >= limits.min
        yield measured.result(
            NAME,
            "headroom",
            headroom,
            f">= {limits.min:g}",
            "" if is_good else _reason(value),
            layer="" if is_good else value["layer"] or value["node"],
        )


def _reason(value: Mapping[str, Any]) -> str:
    where = f"`{value['value']}` ({value['op']}) of node `{value['node']}`"
    if value["largest"] is None:
        return f"{where} is not finite even in float32, in {value['of']}"
    size = f"{where} reaches {value['largest']:.4g} in {value['of']}"
    if value["headroom"] < OVERFLOW:
        return f"{size}, which is infinite in float16: its largest number is 65504"
    return f"{size}; float16 ends at 65504, and other data may well go further"


HEADROOM = Check(name=NAME, stage=STAGE, plan=_plan, judge=_judge)
