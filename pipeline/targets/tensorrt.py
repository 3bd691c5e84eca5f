"""Engines of full TensorRT: for the GPU of the machine that builds them, and made there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pipeline.engines.facts_file import Sha256
from pipeline.engines.module import TENSORRT, require_module
from pipeline.engines.preflight import choose_engine
from pipeline.errors import EnvironmentMissing
from pipeline.gpu import this_machine
from pipeline.stages.base import StageConfig
from pipeline.stages.engine_tensorrt import (
    ENGINE_TENSORRT,
    TIMING_CACHE_PORT,
    HardwareCompatibility,
    TensorRTEngineConfig,
)
from pipeline.targets.base import SourceRef
from pipeline.targets.engine_chain import EngineOrder, EngineTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.engines.preflight import EngineChoice
    from pipeline.targets.base import Ref


TIMING_CACHE_GROUP = "timing-cache:"
"""And then the target's name: the group of files that its engine starts from."""


class TimingCache(StageConfig):
    """Timings of an earlier build, by which TensorRT chooses the same kernels, and sooner."""

    file: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")] = Field(
        description="`model.smXX.timing.cache` of an artifact (relative to the recipe)",
        examples=["artifacts/minilm/latest/trt/model.sm90.timing.cache"],
    )
    sha256: Sha256 = Field(description="digest of that file")


class TensorRTTarget(EngineTarget):
    """One engine, with the ONNX graph it was built from."""

    runtime: Literal["tensorrt"]
    version_compatible: bool = Field(
        default=False, description="let later versions of TensorRT read the engine"
    )
    hardware_compatibility: HardwareCompatibility = Field(
        default="none",
        description="on which other GPUs the engine runs: ampere_plus is sm80 and later",
    )
    timing_cache: TimingCache | None = Field(
        default=None, description="start from the timings of an earlier build"
    )

    def check(self) -> None:
        """The package and the GPU.

        Raises:
            EnvironmentMissing: one of them is not here.
        """
        require_module(TENSORRT)
        machine = this_machine()
        if machine.gpu is None:
            reason = (
                f"the NVIDIA driver {machine.driver} shows none: {machine.trouble}"
                if machine.driver
                else "this machine has no NVIDIA driver"
            )
            raise EnvironmentMissing(
                f"full TensorRT builds on a GPU only, and {reason}",
                hint="build on a machine with a GPU, or take `runtime: tensorrt-rtx`, which builds "
                "without one",
            )

    def orders(self, options: Mapping[str, Any]) -> tuple[EngineOrder, ...]:
        """The one engine."""
        target = _gpu_target()
        return (
            EngineOrder(
                label="",
                runtime="tensorrt",
                stage=ENGINE_TENSORRT,
                config=TensorRTEngineConfig(
                    version_compatible=self.version_compatible,
                    hardware_compatibility=self.hardware_compatibility,
                    **options,
                ),
                renames={
                    "model.engine": f"model.{target}.engine",
                    "layers.json": f"model.{target}.layers.json",
                    "engine.json": f"model.{target}.engine.json",
                    "timing.cache": f"model.{target}.timing.cache",
                },
                ports=self._ports(),
            ),
        )

    def _ports(self) -> dict[str, Ref]:
        if self.timing_cache is None:
            return {}
        return {TIMING_CACHE_PORT: SourceRef(f"{TIMING_CACHE_GROUP}{self.name}")}

    def choose(self) -> EngineChoice:
        """The engine runs here, where it was built, if anything does."""
        return choose_engine(TENSORRT, (_gpu_target(),))


def _gpu_target() -> str:
    gpu = this_machine().gpu
    return gpu.target if gpu else ""
