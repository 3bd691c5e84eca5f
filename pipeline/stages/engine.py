"""Build one TensorRT-RTX engine from one ONNX graph, on any machine; see `engine_work`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import Footprint, Stage
from pipeline.stages.engine_work import COVERAGE, EngineOptions, coverage_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.engines.header import EngineHeader
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class EngineConfig(EngineOptions):
    """What to build.

    Attributes:
        compute_capability: `sm75`, `sm80`, `sm86`, `sm89`, `sm120`, `sm121`, or `portable`: one
            engine for everything from sm80 on.
    """

    compute_capability: str


def run_engine(
    config: EngineConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    """Build the engine and say what is in it.

    Raises:
        EngineBuildError: when the graph cannot become an engine, the build fails, or the engine is
            not what was asked for.
        EnvironmentMissing: when TensorRT-RTX is not installed.
    """
    from pipeline.engines.module import TENSORRT_RTX
    from pipeline.engines.targets import PORTABLE
    from pipeline.stages.engine_work import Order, make_engine

    target = config.compute_capability
    order = Order(
        module=TENSORRT_RTX,
        runtime="tensorrt-rtx",
        product="TensorRT-RTX",
        target=target,
        compute_capabilities=() if target == PORTABLE else (target,),
        check_header=lambda header: _require_target(target, header),
    )
    return make_engine(config, order, inputs["model"], output, context)


def _require_target(target: str, header: EngineHeader) -> None:
    from pipeline.engines.targets import capability_mask
    from pipeline.errors import EngineBuildError

    if header.capability_mask != capability_mask(target):
        raise EngineBuildError(
            f"the engine was asked for {target}, and its header says "
            f"{', '.join(header.compute_capabilities) or hex(header.capability_mask)}"
        )


ENGINE = Stage(
    name="engine",
    version=4,
    footprint=Footprint(base_mib=350, memory_per_weight=1.5, disk_per_weight=0.5),
    config_type=EngineConfig,
    coverage=COVERAGE,
    coverage_of=coverage_of,
    preload=(
        "pipeline.engines.build",
        "pipeline.engines.facts",
        "pipeline.engines.facts_file",
        "pipeline.graph.engine_checks",
    ),
    run=run_engine,
    packages=("numpy", "onnx", "onnx-ir", "tensorrt-rtx"),
    extra="rtx",
)
