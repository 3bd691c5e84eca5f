"""A provider for GPUs must take the matrix products: none may be left to the CPU.

What ONNX Runtime leaves there on purpose, sums over shapes and the like, is no product, and is counted
only. A recipe may limit its share too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.runtimes.ort_providers import NAMES
from pipeline.stages.check_assignment import CHECK_ASSIGNMENT, CheckAssignmentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.parity.types import GateResult
    from pipeline.targets.base import Ref

NAME = "assignment"
_MOST_NAMED = 3


class AssignmentLimits(Limits):
    """How much a provider may leave to the CPU.

    Attributes:
        max_products_on_cpu: Matrix products.
        max_share_on_cpu: Of all nodes; None: any.
    """

    max_products_on_cpu: Annotated[int, Field(ge=0)] = Field(
        default=0, description="matrix products that a provider for GPUs may leave to the CPU"
    )
    max_share_on_cpu: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="share of all nodes that it may leave there"
    )


def _plan(subject: Subject, limits: AssignmentLimits) -> Iterator[PlannedCheck]:
    """Of what a provider of ONNX Runtime runs on this machine's GPU."""
    del limits
    device = subject.device
    if device is None or device.provider is None:
        return
    inputs: dict[str, Ref] = {"model": device.node}
    if device.cache is not None:
        inputs["cache"] = device.cache
    yield PlannedCheck(
        link=subject.links[-1],
        config=CheckAssignmentConfig(plan=device.provider, profile=dict(subject.profile)),
        inputs=inputs,
    )


def _judge(measured: Measured, limits: AssignmentLimits) -> tuple[GateResult, ...]:
    return tuple(_results(measured, limits))


def _results(measured: Measured, limits: AssignmentLimits) -> Iterator[GateResult]:
    facts, cpu = measured.facts, NAMES["cpu"]
    products, most = int(facts["products"].get(cpu, 0)), limits.max_products_on_cpu
    yield measured.result(
        NAME,
        "products_on_cpu",
        float(products),
        f"<= {most}",
        _reason(facts, products, most),
    )
    share = facts["nodes"].get(cpu, 0) / max(sum(facts["nodes"].values()), 1)
    limit = limits.max_share_on_cpu
    if limit is not None:
        reason = f"{share:.1%} of the nodes run on the CPU: {_named(facts['on_cpu'])}"
        yield measured.result(
            NAME, "share_on_cpu", share, f"<= {limit:g}", reason if share > limit else ""
        )


def _reason(facts: Mapping[str, object], products: int, most: int) -> str:
    if products <= most:
        return ""
    left = [node for node in _nodes(facts) if node["is_product"]]
    return f"{products} matrix products run on the CPU, not on the GPU: {_named(left)}"


def _nodes(facts: Mapping[str, object]) -> list[dict[str, object]]:
    found = facts["on_cpu"]
    return list(found) if isinstance(found, list) else []


def _named(nodes: list[dict[str, object]]) -> str:
    names = [f"{node['op']} `{node['node']}`" for node in nodes[:_MOST_NAMED]]
    more = f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else ""
    return f"{', '.join(names)}{more}"


ASSIGNMENT = Check(name=NAME, stage=CHECK_ASSIGNMENT, plan=_plan, judge=_judge)
