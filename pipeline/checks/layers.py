"""Layer by layer: what each graph of a chain adds to the difference, for findings to name a layer.

No gate: what may come out wrong in a layer is not known, and of the outputs other gates say it.
Quantised graphs are looked at in every build, the others when a failure is to be explained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.stages.compare_layers import (
    BEFORE_PORT,
    CHECKPOINT_PORT,
    COMPARE_LAYERS,
    EXPORT_PORT,
    MODEL_PORT,
    PROBES_PORT,
    SAMPLES_PORT,
    CompareLayersConfig,
)
from pipeline.stages.export import ExportConfig
from pipeline.targets.base import NodeRef, SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.checks.base import Link
    from pipeline.parity.types import GateResult
    from pipeline.targets.base import Ref

NAME = "layers"


class LayerLimits(Limits):
    """How much is spent on it."""

    samples: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=8, description="evaluation samples on which layers are compared"
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="seconds after which no further sample is begun"
    )


def _plan(subject: Subject, limits: LayerLimits) -> Iterator[PlannedCheck]:
    """Of every graph what it was made from says what is right; of an export, torch does."""
    for link in subject.links:
        arithmetic = link.model.arithmetic
        if arithmetic is None:
            continue  # what a graph from elsewhere computes with is not known before it is read
        is_quantized = arithmetic == "quantized"
        if not is_quantized and not subject.is_diagnosing:
            continue
        before = _before(link, subject)
        if before is None and link.stage != "export":
            continue  # a graph from elsewhere has no names in common with the checkpoint
        ports: dict[str, Ref] = {
            MODEL_PORT: link.node,
            SAMPLES_PORT: subject.samples,
            EXPORT_PORT: subject.links[0].node,
        }
        if before is None:
            ports[CHECKPOINT_PORT] = SourceRef("checkpoint")
        else:
            ports[BEFORE_PORT] = before.node
        if not is_quantized:
            ports[PROBES_PORT] = subject.probes  # a fault may show there alone
        yield PlannedCheck(
            link=link,
            config=CompareLayersConfig(
                against="torch" if before is None else before.stage,
                arithmetic=arithmetic,
                optimizations=link.model.optimizations,
                before="disabled" if before is None else before.model.optimizations,
                task=subject.task.name if before is None else "",
                component=subject.component if before is None else "",
                attention=link.config.attention if isinstance(link.config, ExportConfig) else None,
                samples=limits.samples,
                time_limit_s=limits.time_limit_s,
            ),
            inputs=ports,
        )


def _before(link: Link, subject: Subject) -> Link | None:
    """The graph of the chain that a graph was made from."""
    made_from = link.inputs.get("model")
    if not isinstance(made_from, NodeRef):
        return None
    return next((each for each in subject.links if each.node == made_from), None)


def _judge(measured: Measured, limits: LayerLimits) -> tuple[GateResult, ...]:
    del measured, limits
    return ()


LAYERS = Check(
    name=NAME, stage=COMPARE_LAYERS, plan=_plan, judge=_judge, is_run=True, explains=True
)
