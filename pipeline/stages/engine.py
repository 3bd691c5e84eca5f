"""Build one TensorRT-RTX engine from one ONNX graph, on any machine.

Input `model`: a directory with `model.onnx` and, where there is any, its external data. Output:
`model.engine`, and `layers.json`, the table of its fused layers.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.engines.build import BuiltEngine
    from pipeline.engines.header import EngineHeader
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

ENGINE_FILE = "model.engine"
LAYERS_FILE = "layers.json"
_MAX_ROWS_IN_FACTS = 200


class EngineConfig(StageConfig):
    """What to build.

    Attributes:
        compute_capability: `sm75`, `sm80`, `sm86`, `sm89`, `sm120` or `sm121`.
        precision: Of the graph's matrix products, such as `fp16`; the graph is not changed.
        profile: Axis name -> (min, opt, max).
        workspace_mib: Limit of the scratch memory that one layer may ask for, in MiB.
    """

    compute_capability: str
    precision: str
    profile: dict[str, tuple[int, int, int]]
    workspace_mib: int | None = Field(default=None, ge=1)


def run_engine(
    config: EngineConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    """Build the engine and say what is in it.

    Raises:
        EngineBuildError: when the graph cannot become an engine, the build fails, or the engine is
            not what was asked for.
        EnvironmentMissing: when TensorRT-RTX is not installed.
    """
    from pipeline.engines.build import EngineRequest, build_engine
    from pipeline.engines.builder_log import parse_layers
    from pipeline.engines.diagnosis import graph_failure
    from pipeline.engines.facts import layer_facts, short_row
    from pipeline.engines.module import TENSORRT_RTX
    from pipeline.engines.profiles import profile_from_axes
    from pipeline.engines.targets import require_builder
    from pipeline.graph.engine_checks import read_engine_graph

    require_builder()
    model = inputs["model"] / MODEL_FILE
    graph = read_engine_graph(model)
    if graph.problems:
        raise graph_failure(graph.problems)
    profile = profile_from_axes({i.name: i.dims for i in graph.inputs}, config.profile)
    workspace = None if config.workspace_mib is None else config.workspace_mib << 20
    request = EngineRequest(
        module=TENSORRT_RTX,
        model=model,
        compute_capabilities=(config.compute_capability,),
        profiles=(profile,),
        workspace_bytes=workspace,
    )
    built = build_engine(request, context.scratch)
    if not built.result.addresses_are_fixed:
        context.log("addresses are randomised here: a rebuild may differ in a few bytes")
    for message in built.warnings:
        context.log(f"TensorRT-RTX warns: {message}")
    layers = parse_layers(built.result.layers)
    rows = [short_row(layer) for layer in layers]
    facts = layer_facts(layers, [block.nodes for block in graph.attentions], config.precision)
    facts |= _engine_facts(config, built)
    shutil.move(built.path, output / ENGINE_FILE)
    (output / LAYERS_FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if len(rows) <= _MAX_ROWS_IN_FACTS:
        facts["layer_rows"] = rows
    return facts


def _engine_facts(config: EngineConfig, built: BuiltEngine) -> dict[str, JSON]:
    from pipeline.engines.builder_log import parse_memory
    from pipeline.engines.header import read_engine_header

    header = read_engine_header(built.path)
    memory = parse_memory(tuple(message for _, message in built.result.records))
    _require_asked_engine(config, built, header)
    return {
        "tensorrt_rtx": header.version,
        "compute_capability": config.compute_capability,
        "precision": config.precision,
        "profile": {axis: list(sizes) for axis, sizes in sorted(config.profile.items())},
        "size_bytes": header.size_bytes,
        "weights_bytes": memory.weights_bytes,
        "activation_memory_bytes": memory.activation_bytes,
        "scratch_memory_bytes": memory.scratch_bytes,
        "warnings": list(built.warnings),
    }


def _require_asked_engine(config: EngineConfig, built: BuiltEngine, header: EngineHeader) -> None:
    from pipeline.engines.targets import capability_mask
    from pipeline.errors import EngineBuildError

    if header.capability_mask != capability_mask(config.compute_capability):
        raise EngineBuildError(
            f"the engine was asked for {config.compute_capability}, and its header says "
            f"{', '.join(header.compute_capabilities) or hex(header.capability_mask)}"
        )
    if header.version != built.result.version:
        raise EngineBuildError(
            f"TensorRT-RTX {built.result.version} built it, and the header says {header.version}"
        )


ENGINE = Stage(
    name="engine",
    version=1,
    footprint=Footprint(base_mib=350, memory_per_weight=1.5, disk_per_weight=0.5),
    config_type=EngineConfig,
    coverage=("fused_attention", "fp32_gemms", "fp16_gemms", "bf16_gemms", "int8_gemms"),
    run=run_engine,
    packages=("numpy", "onnx", "onnx-ir", "tensorrt-rtx"),
    extra="rtx",
)
