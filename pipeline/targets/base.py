"""What a target is: a declaration in the recipe, and the chain of stages it stands for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.candidates import Candidate
    from pipeline.parity.tolerances import Arithmetic
    from pipeline.runtimes.ort_providers import ProviderPlan
    from pipeline.source import Source
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.tasks import Task


class TargetBase(BaseModel):
    """Fields that every target of a recipe has; each runtime adds its own in its own file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="also the name of the target's folder in the artifact", examples=["cpu-fp32"]
    )

    @abstractmethod
    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Lay out the stages that make this target, for every component of the model.

        Raises:
            RecipeError: what is asked for is impossible.
            EnvironmentMissing: something that makes it is not installed.
        """


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The output directory of another node of the plan, by the node's identity."""

    node: int


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A named group of the checkpoint's files, such as `checkpoint` or `tokenizer`."""

    group: str


Ref = NodeRef | SourceRef
Optimizations = Literal["disabled", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLink:
    """One ONNX-making node of a chain, and how its graph is run to be compared.

    Attributes:
        node: The node.
        optimizations: ONNX Runtime's graph optimisations while comparing: `disabled` runs the graph
            as it is written, `all` as a user of ONNX Runtime would.
        arithmetic: The least exact numbers it computes with on purpose, which say how far it may
            be from the checkpoint; None when only the graph itself says it.
        outputs: Outputs that it is compared by; None means all that the checkpoint has.
    """

    node: NodeRef
    optimizations: Optimizations
    arithmetic: Arithmetic | None
    outputs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliverable:
    """A file set that the artifact's target folder holds.

    Attributes:
        node: Whose output is delivered.
        renames: File name in the node's output -> name in the folder; other files keep theirs.
    """

    node: NodeRef
    renames: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRun:
    """A model that this machine's GPU runs, so that it is compared and timed itself.

    Attributes:
        node: The node that makes it.
        runtime: What runs it.
        arithmetic: The least exact numbers it computes with on purpose.
        profiles: Of an engine, each axis name -> (min, opt, max).
        provider: Of ONNX Runtime; None for engines.
        cache: The node that builds what the provider needs to load the model; None where it needs
            nothing.
    """

    node: NodeRef
    runtime: Literal["tensorrt-rtx", "tensorrt", "onnxruntime"]
    arithmetic: Arithmetic
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...] = ()
    provider: ProviderPlan | None = None
    cache: NodeRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetChain:
    """The chain of one target, component by component.

    Attributes:
        models: Component -> its ONNX-making nodes, from export to the last.
        deliverables: Component -> what ends up in the artifact.
        runtime: What runs the target here, to time it; None when nothing can.
        not_run_reason: Why it cannot be run on this machine; empty when it can. Whatever needs it
            (parity on the device, speed) is then reported as not run.
        proxy: How parity is stood in for when the target cannot run here, such as
            `onnxruntime-cpu`; empty when parity is measured on the target itself.
        precision: What a model that is checked computes with, in words; empty where the recipe
            says it.
        device_runs: Component -> its model that runs on this machine; empty when none does.
    """

    models: Mapping[str, tuple[ModelLink, ...]]
    deliverables: Mapping[str, tuple[Deliverable, ...]]
    runtime: Literal["onnxruntime"] | None = None
    not_run_reason: str = ""
    proxy: str = ""
    precision: str = ""
    device_runs: Mapping[str, DeviceRun] = field(default_factory=dict)


class ChainBuilder(Protocol):
    """What a target may ask of the plan that is being built."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the model's components, such as `("model",)`."""

    @property
    def profile(self) -> Mapping[str, tuple[int, int, int]]:
        """Axis name -> (min, opt, max) from the recipe's `shapes`."""

    @property
    def task(self) -> Task:
        """What the checkpoint is for."""

    @property
    def source(self) -> Source:
        """The checkpoint."""

    def candidate(self, target: str) -> Candidate:
        """The model that a target checks."""

    def exported(self, component: str) -> NodeRef:
        """The node that exports a component."""

    @property
    def task_name(self) -> str:
        """What the model is for."""

    def is_looked_at(self, stage: str) -> bool:
        """Whether anything compares or checks the float graph that a stage of this target makes."""

    def calibration_samples(self, purpose: str = ...) -> NodeRef:
        """The node that prepares the samples that ranges are taken from.

        Args:
            purpose: What they are for, as a sentence, for the message when there are none.

        Raises:
            RecipeError: the recipe names no calibration data.
        """

    def add(
        self,
        stage: AnyStage,
        config: StageConfig,
        inputs: Mapping[str, Ref],
        *,
        component: str = "",
        label: str = "",
    ) -> NodeRef:
        """Add a node, or find the equal one that is already there.

        `label` tells nodes of one stage apart for people (`sm89`); it is no part of the key.
        """
