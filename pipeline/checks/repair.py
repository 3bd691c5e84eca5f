"""A repair that was asked for must have reached its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.stages.check_repair import CHECK_REPAIR, CheckRepairConfig
from pipeline.stages.given_back import REPAIR_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME = "repair"


class RepairGate(Limits):
    """Has no limits of its own: they stand where the repair is asked for."""


def _plan(subject: Subject, limits: RepairGate) -> Iterator[PlannedCheck]:
    """Of every graph that was quantised with a repair."""
    del limits
    for link in subject.links:
        if REPAIR_PORT in link.inputs:
            ports = {REPAIR_PORT: link.inputs[REPAIR_PORT]}
            yield PlannedCheck(link=link, config=CheckRepairConfig(), inputs=ports)


def _judge(measured: Measured, limits: RepairGate) -> tuple[GateResult, ...]:
    del limits
    facts, results = measured.facts, []
    layers = f"{len(facts['given_back'])} of {facts['layers_total']} layers in float"
    for entry in facts["limits"]:
        after, allowed = entry["after"], entry["allowed"]
        is_good = after is not None and after <= allowed
        results.append(
            measured.result(
                NAME,
                entry["limit"].removeprefix("max_"),
                after,
                f"<= {allowed:.3g}",
                ""
                if is_good
                else f"the repair ended with {layers} and did not reach its limit: "
                f"{facts['stopped']}",
            )
        )
    return tuple(results)


REPAIR_CHECK = Check(name=NAME, stage=CHECK_REPAIR, plan=_plan, judge=_judge)
