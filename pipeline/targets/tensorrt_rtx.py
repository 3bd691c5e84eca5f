"""TensorRT-RTX engines, built ahead of time and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.engines.targets import check_target, require_builder
from pipeline.environment import nvidia_driver_version
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.targets.base import Deliverable, ModelLink, TargetBase, TargetChain

if TYPE_CHECKING:
    from pipeline.targets.base import ChainBuilder

ComputeCapability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            msg = f"`{value}` is listed twice"
            raise ValueError(msg)
    return values


class TensorRTRTXTarget(TargetBase):
    """One engine for each compute capability, with the ONNX graph it was built from."""

    runtime: Literal["tensorrt-rtx"]
    precision: Literal["fp16"]
    compute_capability: Annotated[
        tuple[ComputeCapability, ...], Field(min_length=1), AfterValidator(_without_repeats)
    ]
    simplify: SimplifyConfig = SimplifyConfig()
    cast: CastConfig = CastConfig()

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Export, simplify, cast, and one engine for each compute capability."""
        for capability in self.compute_capability:
            check_target(capability, self.precision)
        require_builder()
        models: dict[str, tuple[ModelLink, ...]] = {}
        deliverables: dict[str, tuple[Deliverable, ...]] = {}
        for component in builder.components:
            exported = builder.exported(component)
            simplified = builder.add(
                SIMPLIFY, self.simplify, {"model": exported}, component=component
            )
            cast = builder.add(CAST, self.cast, {"model": simplified}, component=component)
            # The engine is strongly typed, so the graph as it is written is its nearest stand-in.
            models[component] = tuple(
                ModelLink(node=node, optimizations="disabled")
                for node in (exported, simplified, cast)
            )
            made = [Deliverable(node=cast)]
            for capability in self.compute_capability:
                config = EngineConfig(
                    compute_capability=capability,
                    precision=self.precision,
                    profile=dict(builder.profile),
                )
                engine = builder.add(
                    ENGINE, config, {"model": cast}, component=component, label=capability
                )
                renames = {
                    "model.engine": f"model.{capability}.engine",
                    "layers.json": f"model.{capability}.layers.json",
                }
                made.append(Deliverable(node=engine, renames=renames))
            deliverables[component] = tuple(made)
        return TargetChain(
            models=models,
            deliverables=deliverables,
            not_run_reason=_not_run_reason(),
            proxy="onnxruntime-cpu",
        )


def _not_run_reason() -> str:
    if not nvidia_driver_version():
        return "this machine has no NVIDIA driver"
    return "running engines is not part of this version"
