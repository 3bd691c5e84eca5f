"""The contract of a check: a value, not a base class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from pipeline.parity.gates import DEFAULT_COMPONENT
from pipeline.parity.types import GateResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import NoiseFloor
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.targets.base import DeviceRun, ModelLink, NodeRef, Ref
    from pipeline.tasks import Task


class Limits(BaseModel):
    """Base of the limits that a recipe may set for a check: frozen, strict, with defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One graph of a chain, as a check sees it.

    Attributes:
        node: The node that makes it.
        stage: The name of that node's stage.
        config: Its config, such as what was asked of a quantisation.
        inputs: The ports of the node, to find the graph it was made from.
        optimizations, arithmetic: As in `ModelLink`.
    """

    model: ModelLink
    stage: str
    config: StageConfig
    inputs: Mapping[str, Ref]

    @property
    def node(self) -> NodeRef:
        """The node that makes the graph."""
        return self.model.node


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What there is to check of one component of one target.

    Attributes:
        component: The model component.
        links: The graphs of the chain, from the export to the last; the last is delivered.
        samples: The evaluation samples.
        probes: The probes.
        reference: What the checkpoint made of both.
        task: The task.
        profile: Axis -> (smallest, usual, largest) that the recipe allows.
        is_diagnosing: A gate failed, and what explains it is worth some time.
        models: Component -> its graphs, for checks of several components together.
        sources: Of an encoder with a decoder, the evaluation samples of the two together.
        device: What runs the last link on this machine's GPU; None when nothing does.
    """

    component: str
    links: tuple[Link, ...]
    samples: NodeRef
    probes: NodeRef
    reference: NodeRef
    task: Task
    profile: Mapping[str, tuple[int, int, int]]
    is_diagnosing: bool = False
    models: Mapping[str, tuple[ModelLink, ...]] = field(default_factory=dict)
    sources: NodeRef | None = None
    device: DeviceRun | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCheck:
    """One node that a check wants.

    Attributes:
        link: The graph that is looked at, and accused when it fails.
        config: The config of the check's stage.
        inputs: Its ports; `SourceRef("checkpoint")` and the like are allowed.
    """

    link: Link
    config: StageConfig
    inputs: Mapping[str, Ref]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a check's node found, as a report has it.

    Attributes:
        target: The target's name.
        component: The model component.
        stage: Name of the stage that made the graph that was looked at.
        node: Name of its node.
        arithmetic: What that graph computes with.
        is_proxy: The graph stands in for an engine.
        facts: The facts of the check's own node.
        floors: Output -> noise floor of the checkpoint.
    """

    target: str
    component: str
    stage: str
    node: str
    arithmetic: Arithmetic
    is_proxy: bool
    facts: Mapping[str, Any]
    floors: Mapping[str, NoiseFloor]

    def result(
        self,
        gate: str,
        metric: str,
        value: float | None,
        limit: str,
        reason: str,
        *,
        layer: str = "",
    ) -> GateResult:
        """One gate of the graph that was looked at; passed when there is no reason against it."""
        component = "" if self.component == DEFAULT_COMPONENT else f"{self.component}."
        return GateResult(
            gate=gate,
            target=self.target,
            metric=f"{component}{self.stage}.{metric}",
            measured=value,
            limit=limit,
            verdict="failed" if reason else "passed",
            reason=reason,
            is_allowed=not reason,
            is_proxy=self.is_proxy,
            node=self.node,
            layer=layer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: Unique, snake_case: the name of its gate, and of its limits in `gates.checks`.
        stage: What measures it.
        plan: Which nodes it wants for a component of a target, given the limits; none when it has
            nothing to say of it.
        judge: The numbers against the limits. Pure; imports nothing heavy.
        is_run: Whether it runs the graph that it looks at. Then it is left out with the comparison of
            that graph (`gates.stages`).
        explains: It only explains failures: left out, it leaves no question open.
    """

    name: str
    stage: AnyStage
    plan: Callable[[Subject, Any], Iterable[PlannedCheck]]
    judge: Callable[[Measured, Any], tuple[GateResult, ...]]
    is_run: bool = False
    explains: bool = False


AnyLimits: TypeAlias = Any
"""Limits of whichever check; its own type in `pipeline.checks.limits` is what checks them."""
