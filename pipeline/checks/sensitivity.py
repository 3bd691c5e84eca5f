"""When a gate failed: which layers of a quantised graph lose most by their 8 bits. Nothing is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.stages.given_back import REPAIR_PORT
from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
from pipeline.stages.quantize_static import QuantizeStaticConfig
from pipeline.stages.sensitivity import SENSITIVITY, SensitivityConfig
from pipeline.stages.variants import MODEL_PORT, RANGES_PORT, SAMPLES_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME = "sensitivity"


class SensitivityLimits(Limits):
    """How much is spent on an explanation."""

    samples: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=8, description="evaluation samples that layers are tried on"
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="seconds after which no further layer is tried"
    )


def _plan(subject: Subject, limits: SensitivityLimits) -> Iterator[PlannedCheck]:
    """Of quantised graphs, to explain a failure; where there is a repair, it has said so already.

    On evaluation samples, which may be looked at here: nothing is chosen by what is seen.
    """
    for link in subject.links if subject.is_diagnosing else ():
        config = link.config
        if not isinstance(config, QuantizeDynamicConfig | QuantizeStaticConfig):
            continue
        if REPAIR_PORT in link.inputs:
            continue
        ports = {
            name: link.inputs[name] for name in (MODEL_PORT, RANGES_PORT) if name in link.inputs
        }
        yield PlannedCheck(
            link=link,
            config=SensitivityConfig(
                samples=limits.samples,
                time_limit_s=limits.time_limit_s,
                quantizer=config,
                optimizations=link.model.optimizations,
            ),
            inputs={**ports, SAMPLES_PORT: subject.samples},
        )


def _judge(measured: Measured, limits: SensitivityLimits) -> tuple[GateResult, ...]:
    del measured, limits
    return ()


SENSITIVITY_CHECK = Check(name=NAME, stage=SENSITIVITY, plan=_plan, judge=_judge, explains=True)
