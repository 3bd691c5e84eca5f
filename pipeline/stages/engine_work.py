"""What the two stages that build engines share: check the graph, build, judge, and say what was built.

Input `model`: a directory with `model.onnx` and, where there is any, its external data. Output:
`model.engine`; `engine.json`, what must be known to load and feed it (`engines.facts_file`); and
`layers.json`, the table of its fused layers.

Facts, for the report and for gates: `runtime`, the version under the package's name,
`compute_capability`, `precision`, `profiles` (`axes` and `inputs`, each with min, opt, max),
`expected_inputs` and `expected_outputs` (`name`, `dtype`, `dims`), sizes in bytes, `layers`,
`layer_types`, `gemm_kinds`, `copy_layers`, `attention_blocks`, `fused_attention`, `by_profile` for
engines with several profiles, `layer_fingerprint`, `coverage` (see `engines.facts.layer_facts`),
`warnings`, and `layer_rows` (see `engines.facts.short_row`) for engines of up to 200 layers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, StageConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.engines.build import BuiltEngine, EngineRequest
    from pipeline.engines.facts_file import TensorFacts
    from pipeline.engines.header import EngineHeader
    from pipeline.engines.module import EngineModule
    from pipeline.engines.profiles import InputProfile
    from pipeline.graph.engine_checks import EngineGraph, GraphTensor
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

ENGINE_FILE = "model.engine"
LAYERS_FILE = "layers.json"
TIMING_CACHE_FILE = "timing.cache"
COVERAGE = (
    "fused_attention",
    "activation_memory_mib",
    "copy_layers",
    "fp32_gemms",
    "fp16_gemms",
    "bf16_gemms",
    "int8_gemms",
    "fp8_gemms",
    "int4_gemms",
)
_MAX_ROWS_IN_FACTS = 200

Refit = bool | Literal["identical"]

Ranges = dict[str, tuple[int, int, int]]


class EngineOptions(StageConfig):
    """What may be said of an engine, whichever package builds it.

    Attributes:
        precision: Of the graph's matrix products, such as `fp16`; the graph is not changed.
        is_weight_only: Of int8: the weights alone have 8 bits.
        profiles: One or several, each axis name -> (min, opt, max).
        workspace_mib: Limit of the scratch memory that one layer may ask for, in MiB.
        refit: Whether weights can be put into the engine later: any, or `identical` ones only, as into
            an engine that was stripped of them.
        strip_weights: Whether the engine is written without its weights.
    """

    precision: str
    is_weight_only: bool = False
    profiles: Annotated[tuple[Ranges, ...], Field(min_length=1)]
    workspace_mib: int | None = Field(default=None, ge=1)
    refit: Refit = False
    strip_weights: bool = False


def coverage_of(options: EngineOptions) -> tuple[str, ...]:
    """Those of `COVERAGE` that an engine of these options may report: of products, its own share."""
    own = f"{options.precision}_gemms"
    return tuple(name for name in COVERAGE if name == own or not name.endswith("_gemms"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What distinguishes the packages.

    Attributes:
        module: The package that builds.
        runtime: Which runtime reads the engine.
        product: The package's name for people.
        target: `sm89`, `portable`; for full TensorRT what this machine's GPU is.
        compute_capabilities: What the builder is told; empty for `portable` and full TensorRT.
        hardware_compatibility: Name of a `HardwareCompatibilityLevel`.
        flags: Builder flags beside those of `EngineOptions`.
        compatibility: For `EngineFacts.compatibility`.
        gpu: For `EngineFacts.gpu`.
        driver: For `EngineFacts.driver`.
        keeps_timing_cache: Whether `timing.cache` is written.
        timing_cache: An earlier one to start from.
        check_header: Refuses an engine that is not the one that was asked for.
    """

    module: EngineModule
    runtime: Literal["tensorrt-rtx", "tensorrt"]
    product: str
    target: str
    check_header: Callable[[EngineHeader], None]
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatibility: str | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    compatibility: tuple[str, ...] = ()
    gpu: str = ""
    driver: str = ""
    keeps_timing_cache: bool = False
    timing_cache: Path | None = None


def make_engine(
    config: EngineOptions,
    order: Order,
    source: Path,
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Build the engine and say what is in it; see the module's text.

    Raises:
        EngineBuildError: when the graph cannot become an engine, the build fails, or the engine is
            not what was asked for.
        EnvironmentMissing: when the package is not installed.
    """
    from pipeline.engines.build import EngineBuilder
    from pipeline.engines.module import require_module

    require_module(order.module)
    # Its process imports TensorRT while the graph is looked at, and is told to build when that is done.
    with EngineBuilder(order.module, context.scratch) as builder:
        graph, request = _checked_request(config, order, source / MODEL_FILE)
        built = builder.build(request)
    if order.runtime == "tensorrt-rtx" and not built.result.addresses_are_fixed:
        context.log("addresses are randomised here: a rebuild may differ in a few bytes")
    for message in built.warnings:
        context.log(f"{order.product} warns: {message}")
    if config.refit is True:
        context.log(
            "engines for any weights (REFIT) of some versions lose the bias of a product: trust the "
            "parity on the device, or take `refit: identical`"
        )
    facts = _facts(config, order, graph, request.profiles, built, output)
    shutil.move(built.path, output / ENGINE_FILE)
    if built.timing_cache is not None:
        shutil.move(built.timing_cache, output / TIMING_CACHE_FILE)
    return facts


def _checked_request(
    config: EngineOptions, order: Order, model: Path
) -> tuple[EngineGraph, EngineRequest]:
    """Look at the graph; what the builder is told to make of it.

    Raises:
        EngineBuildError: when it cannot become an engine.
    """
    from pipeline.engines.build import EngineRequest
    from pipeline.engines.diagnosis import graph_failure
    from pipeline.engines.profiles import profiles_from_axes
    from pipeline.graph.engine_checks import read_engine_graph

    graph = read_engine_graph(model)
    if graph.problems:
        raise graph_failure(graph.problems)
    profiles = profiles_from_axes({i.name: i.dims for i in graph.inputs}, config.profiles)
    request = EngineRequest(
        module=order.module,
        model=model,
        compute_capabilities=order.compute_capabilities,
        profiles=profiles,
        workspace_bytes=None if config.workspace_mib is None else config.workspace_mib << 20,
        flags={**_flags(config), **order.flags},
        hardware_compatibility=order.hardware_compatibility,
        keeps_timing_cache=order.keeps_timing_cache,
        timing_cache=order.timing_cache,
        # An `Attention` without a kernel (in float32, or with small heads) fails the build unless
        # it may fall apart; where there is a kernel this changes nothing.
        is_attention_decomposable=any(len(block.nodes) == 1 for block in graph.attentions),
    )
    return graph, request


def _flags(config: EngineOptions) -> dict[str, bool]:
    # TensorRT multiplies float32 as TF32, with 10 bits of mantissa, unless it is told not to. What is
    # still float32 in a graph of another precision is there because it must be exact.
    flags = {"TF32": False}
    # NVIDIA's documentation of 11.3: with REFIT the bias of a product may be dropped, with
    # REFIT_IDENTICAL it is not. So REFIT is set only for whoever wants to put other weights in.
    if config.refit == "identical" or (config.strip_weights and not config.refit):
        flags["REFIT_IDENTICAL"] = True
    elif config.refit:
        flags["REFIT"] = True
    if config.strip_weights:
        flags["STRIP_PLAN"] = True
    return flags


def _facts(
    config: EngineOptions,
    order: Order,
    graph: EngineGraph,
    profiles: tuple[Mapping[str, InputProfile], ...],
    built: BuiltEngine,
    output: Path,
) -> dict[str, JSON]:
    """The stage's facts; writes `layers.json` and `engine.json`."""
    from pipeline.engines.builder_log import parse_memory
    from pipeline.engines.facts import layer_facts, short_row
    from pipeline.engines.facts_file import (
        FACTS_FILE,
        EngineFacts,
        ProfileFacts,
        write_engine_facts,
    )
    from pipeline.engines.header import read_engine_header
    from pipeline.engines.inspector import engine_layers
    from pipeline.errors import EngineBuildError
    from pipeline.hashing import sha256_file

    header = read_engine_header(built.path)
    _require_version(order, built, header)
    order.check_header(header)
    memory = parse_memory(tuple(message for _, message in built.result.records))
    layers = engine_layers(built.result.layers, built.result.inspection)
    attentions = [block.nodes for block in graph.attentions]
    rows = [short_row(layer, attentions) for layer in layers]
    if len(memory.activations_by_profile) != len(profiles):
        raise EngineBuildError(
            f"the builder's log gives the memory of {len(memory.activations_by_profile)} profiles, "
            f"and the engine has {len(profiles)}",
            hint=f"this version of {order.product} is newer than what this program knows",
        )
    judged = layer_facts(
        layers,
        attentions,
        config.precision,
        memory=memory.activations_by_profile,
        is_weight_only=config.is_weight_only,
    )
    facts = EngineFacts(
        runtime=order.runtime,
        version=header.version,
        target=order.target,
        precision=config.precision,
        profiles=tuple(
            ProfileFacts(axes=axes, inputs=dict(inputs))
            for axes, inputs in zip(config.profiles, profiles, strict=True)
        ),
        inputs=tuple(_tensor(tensor) for tensor in graph.inputs),
        outputs=tuple(_tensor(tensor) for tensor in graph.outputs),
        layer_fingerprint=str(judged["layer_fingerprint"]),
        size_bytes=header.size_bytes,
        sha256=sha256_file(built.path),
        compatibility=order.compatibility,
        gpu=order.gpu,
        driver=order.driver,
    )
    write_engine_facts(facts, output / FACTS_FILE)
    (output / LAYERS_FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = facts.model_dump(mode="json")
    return {
        "runtime": order.runtime,
        order.module.import_name: header.version,
        "compute_capability": order.target,
        "precision": config.precision,
        "is_weight_only": config.is_weight_only,
        "profiles": shown["profiles"],
        "expected_inputs": shown["inputs"],
        "expected_outputs": shown["outputs"],
        "size_bytes": header.size_bytes,
        "weights_bytes": memory.weights_bytes,
        "activation_memory_bytes": memory.activation_bytes,
        "scratch_memory_bytes": memory.scratch_bytes,
        "warnings": list(built.warnings),
        **judged,
        **({"layer_rows": rows} if len(rows) <= _MAX_ROWS_IN_FACTS else {}),
        **({"gpu": order.gpu, "driver": order.driver} if order.gpu else {}),
        **({"compatibility": list(order.compatibility)} if order.compatibility else {}),
    }


def _tensor(tensor: GraphTensor) -> TensorFacts:
    from pipeline.engines.facts_file import TensorFacts

    return TensorFacts(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims)


def _require_version(order: Order, built: BuiltEngine, header: EngineHeader) -> None:
    from pipeline.errors import EngineBuildError

    if header.kind != order.runtime:
        raise EngineBuildError(
            f"{order.product} built it, and its header says that it is of {header.product}"
        )
    if header.version != built.result.version:
        raise EngineBuildError(
            f"{order.product} {built.result.version} built it, and the header says {header.version}"
        )
