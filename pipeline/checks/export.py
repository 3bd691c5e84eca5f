"""The export itself: its parameters against the checkpoint's, bit by bit, and the opset asked for.

Stage gates and probes run a graph on some inputs; a wrong row in the table of tokens needs that very
token to show (one of 30,522 in MiniLM, of which all probes hold a few hundred). Good exports of MiniLM
and four trained models have no parameter that is not the checkpoint's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.stages.check_export import (
    CHECK_EXPORT,
    CHECKPOINT_PORT,
    MODEL_PORT,
    CheckExportConfig,
)
from pipeline.stages.export import ExportConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME = "export"


class ExportLimits(Limits):
    """How many parameters may differ; null only counts them."""

    changed_parameters: Annotated[int, Field(ge=0)] | None = Field(
        default=0, description="parameters that are not the checkpoint's, bit by bit"
    )


def _plan(subject: Subject, limits: ExportLimits) -> Iterator[PlannedCheck]:
    """Of the export, when it is one of ours."""
    del limits
    for link in subject.links:
        if isinstance(link.config, ExportConfig):
            yield PlannedCheck(
                link=link,
                config=CheckExportConfig(opset=link.config.opset),
                inputs={MODEL_PORT: link.node, CHECKPOINT_PORT: link.inputs["checkpoint"]},
            )


def _judge(measured: Measured, limits: ExportLimits) -> tuple[GateResult, ...]:
    asked, found = (measured.facts["opset"][name] for name in ("asked", "found"))
    parameters = measured.facts["parameters"]
    first = parameters["first"][0] if parameters["first"] else {"layer": "", "detail": ""}
    limit = limits.changed_parameters
    is_good = limit is None or parameters["changed"] <= limit
    return (
        measured.result(
            NAME,
            "opset",
            float(found),
            f"= {asked}",
            "" if asked == found else f"the graph is made for opset {found}, not {asked}",
        ),
        measured.result(
            NAME,
            "changed_parameters",
            float(parameters["changed"]),
            "only measured" if limit is None else f"<= {limit}",
            "" if is_good else first["detail"],
            layer="" if is_good else first["layer"],
        ),
    )


EXPORT_CHECK = Check(name=NAME, stage=CHECK_EXPORT, plan=_plan, judge=_judge)
