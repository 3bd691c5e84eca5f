"""Engines of full TensorRT: for the GPU of the machine that builds them, and made there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.engines.module import TENSORRT, require_module
from pipeline.engines.preflight import choose_engine
from pipeline.errors import EnvironmentMissing
from pipeline.gpu import this_machine
from pipeline.stages.engine_tensorrt import (
    ENGINE_TENSORRT,
    HardwareCompatibility,
    TensorRTEngineConfig,
)
from pipeline.targets.engine_chain import EngineOrder, EngineTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.engines.preflight import EngineChoice


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
                ports={},
            ),
        )

    def choose(self) -> EngineChoice:
        """The engine runs here, where it was built, if anything does."""
        return choose_engine(TENSORRT, (_gpu_target(),))


def _gpu_target() -> str:
    gpu = this_machine().gpu
    return gpu.target if gpu else ""
