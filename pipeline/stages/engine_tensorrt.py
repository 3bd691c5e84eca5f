"""Build one engine of full TensorRT, for the GPU of this machine; see `engine_work`.

No two builds are the same bytes: kernels are chosen by how long they take. So the GPU and its driver
are part of the key, the build runs alone, and a timing cache, which keeps the choices of an earlier
build, is an input like any other. Port `timing_cache`, where there is one: a directory with
`timing.cache`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.stages.base import Footprint, Stage
from pipeline.stages.engine_work import COVERAGE, TIMING_CACHE_FILE, EngineOptions, coverage_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.engines.header import EngineHeader
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

TIMING_CACHE_PORT = "timing_cache"
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


class TensorRTEngineConfig(EngineOptions):
    """What to build.

    Attributes:
        version_compatible: Whether later versions of TensorRT read it too.
        hardware_compatibility: On which other GPUs it runs.
    """

    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"


def run_tensorrt_engine(
    config: TensorRTEngineConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    """Build the engine and say what is in it.

    Raises:
        EngineBuildError: when the graph cannot become an engine, the build fails, or the engine is
            not what was asked for.
        EnvironmentMissing: when TensorRT is not installed, or there is no GPU.
    """
    from pipeline.engines.module import TENSORRT
    from pipeline.gpu import this_machine
    from pipeline.stages.engine_work import Order, make_engine

    machine = this_machine()
    if machine.gpu is None:
        from pipeline.errors import EnvironmentMissing

        raise EnvironmentMissing("full TensorRT builds on a GPU only, and there is none here")
    level = config.hardware_compatibility
    widened = ("version_compatible",) if config.version_compatible else ()
    cache = inputs.get(TIMING_CACHE_PORT)
    order = Order(
        module=TENSORRT,
        runtime="tensorrt",
        product="TensorRT",
        target=machine.gpu.target,
        check_header=_accept,
        hardware_compatibility=None if level == "none" else level.upper(),
        flags={"VERSION_COMPATIBLE": True} if config.version_compatible else {},
        compatibility=widened if level == "none" else (*widened, level),
        gpu=machine.gpu.name,
        driver=machine.driver,
        keeps_timing_cache=True,
        timing_cache=None if cache is None else cache / TIMING_CACHE_FILE,
    )
    return make_engine(config, order, inputs["model"], output, context)


def _accept(header: EngineHeader) -> None:
    """The header of full TensorRT names no target; kind and version are looked at by all."""


ENGINE_TENSORRT = Stage(
    name="engine_tensorrt",
    version=3,
    footprint=Footprint(base_mib=1500, memory_per_weight=2.0, disk_per_weight=0.5),
    config_type=TensorRTEngineConfig,
    coverage=COVERAGE,
    coverage_of=coverage_of,
    preload=(
        "pipeline.engines.build",
        "pipeline.engines.facts",
        "pipeline.engines.facts_file",
        "pipeline.graph.engine_checks",
    ),
    run=run_tensorrt_engine,
    packages=("numpy", "onnx", "onnx-ir", "tensorrt"),
    extra="gpu",
    machine=("gpu_name", "gpu_target", "nvidia_driver"),
    is_exclusive=True,
)
