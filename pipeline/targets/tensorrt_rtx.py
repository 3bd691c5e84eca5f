"""TensorRT-RTX engines, built ahead of time and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipeline.engines.module import TENSORRT_RTX
from pipeline.engines.preflight import choose_engine
from pipeline.engines.targets import check_target, require_builder
from pipeline.environment import nvidia_driver_version
from pipeline.errors import EnvironmentMissing
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.targets.engine_chain import EngineOrder, EngineTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.engines.preflight import EngineChoice

ComputeCapability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "portable"]


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            msg = f"`{value}` is listed twice"
            raise ValueError(msg)
    return values


class TensorRTRTXTarget(EngineTarget):
    """One engine for each compute capability, with the ONNX graph it was built from."""

    runtime: Literal["tensorrt-rtx"]
    compute_capability: Annotated[
        tuple[ComputeCapability, ...], Field(min_length=1), AfterValidator(_without_repeats)
    ] = Field(
        description="GPU generations, one engine each; `portable` is one engine for all from sm80 on",
        examples=[["sm89", "sm120"]],
    )

    def check(self) -> None:
        """Every pair of precision and capability, the package, and what only a GPU can build.

        Raises:
            RecipeError: TensorRT-RTX does not build the precision for a capability.
            EnvironmentMissing: it is not installed, or there is no driver and one is needed.
        """
        for target in self.compute_capability:
            check_target(target, self.precision, is_weight_only=self.is_weight_only)
        require_builder()
        for name in ("refit", "strip_weights"):
            if getattr(self, name) and not nvidia_driver_version():
                raise EnvironmentMissing(
                    f"`{name}` needs a GPU on the machine that builds, and this one has no NVIDIA "
                    "driver: without one TensorRT-RTX fails to mark weights that can be exchanged, "
                    "whatever the model",
                    hint=f"build on a machine with a GPU, or leave `{name}` out",
                )

    def orders(self, options: Mapping[str, Any]) -> tuple[EngineOrder, ...]:
        """One engine for each compute capability."""
        return tuple(
            EngineOrder(
                label=target,
                runtime="tensorrt-rtx",
                stage=ENGINE,
                config=EngineConfig(compute_capability=target, **options),
                renames={
                    "model.engine": f"model.{target}.engine",
                    "layers.json": f"model.{target}.layers.json",
                    "engine.json": f"model.{target}.engine.json",
                },
                ports={},
            )
            for target in self.compute_capability
        )

    def choose(self) -> EngineChoice:
        """The engine for this machine's GPU, or the portable one."""
        return choose_engine(TENSORRT_RTX, self.compute_capability)
