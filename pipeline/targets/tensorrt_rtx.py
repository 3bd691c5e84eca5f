"""TensorRT-RTX engines, built ahead of time and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.engines.targets import check_target, require_builder
from pipeline.environment import nvidia_driver_version
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.quantize_static import (
    QUANTIZE_STATIC,
    QuantizeStaticConfig,
    StaticOptions,
)
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.targets.base import Deliverable, ModelLink, TargetBase, TargetChain
from pipeline.targets.repairing import REPAIRABLE_KEYS, Repairable, add_repair

if TYPE_CHECKING:
    from pipeline.parity.tolerances import Arithmetic
    from pipeline.targets.base import ChainBuilder, NodeRef

ComputeCapability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            msg = f"`{value}` is listed twice"
            raise ValueError(msg)
    return values


class TensorRTStaticQuantization(CalibrateConfig, StaticOptions, Repairable):
    """INT8 products with scales from `data.calibration`; all else stays fp16."""

    mode: Literal["static"]


class TensorRTRTXTarget(TargetBase):
    """One engine for each compute capability, with the ONNX graph it was built from."""

    runtime: Literal["tensorrt-rtx"]
    precision: Literal["fp16", "int8"]
    quantization: TensorRTStaticQuantization | None = Field(default=None, description="for int8")
    compute_capability: Annotated[
        tuple[ComputeCapability, ...], Field(min_length=1), AfterValidator(_without_repeats)
    ]
    simplify: SimplifyConfig = SimplifyConfig()
    cast: CastConfig = CastConfig()

    @model_validator(mode="after")
    def _quantization_fits_precision(self) -> Self:
        if (self.precision == "int8") != (self.quantization is not None):
            msg = (
                "precision int8 needs `quantization: {mode: static}`"
                if self.precision == "int8"
                else f"precision {self.precision} takes no `quantization`"
            )
            raise ValueError(msg)
        return self

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Export, simplify, cast, quantise when asked to, and one engine for each compute capability."""
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
            last = builder.add(CAST, self.cast, {"model": simplified}, component=component)
            nodes = [exported, simplified, last]
            arithmetic: list[Arithmetic] = ["float32", "float32", "float16"]
            if self.quantization is not None:
                last = _quantized(self.quantization, builder, component, nodes)
                nodes.append(last)
                arithmetic.append("quantized")
            # The engine is strongly typed, so the graph as it is written is its nearest stand-in.
            models[component] = tuple(
                ModelLink(node=node, optimizations="disabled", arithmetic=kind)
                for node, kind in zip(nodes, arithmetic, strict=True)
            )
            made = [Deliverable(node=last)]
            for capability in self.compute_capability:
                config = EngineConfig(
                    compute_capability=capability,
                    precision=self.precision,
                    profiles=(dict(builder.profile),),
                )
                engine = builder.add(
                    ENGINE, config, {"model": last}, component=component, label=capability
                )
                renames = {
                    "model.engine": f"model.{capability}.engine",
                    "layers.json": f"model.{capability}.layers.json",
                    "engine.json": f"model.{capability}.engine.json",
                }
                made.append(Deliverable(node=engine, renames=renames))
            deliverables[component] = tuple(made)
        return TargetChain(
            models=models,
            deliverables=deliverables,
            not_run_reason=_not_run_reason(),
            proxy="onnxruntime-cpu",
        )


def _quantized(
    options: TensorRTStaticQuantization,
    builder: ChainBuilder,
    component: str,
    nodes: list[NodeRef],
) -> NodeRef:
    """Quantise the cast graph, the last of `nodes`, with ranges of the simplified one before it."""
    _, simplified, cast = nodes
    fields = options.model_dump(exclude={"mode", *REPAIRABLE_KEYS})
    calibrate = CalibrateConfig(
        **{name: fields.pop(name) for name in CalibrateConfig.model_fields}
    )
    ports = {"model": simplified, "samples": builder.calibration_samples()}
    ranges = builder.add(CALIBRATE, calibrate, ports, component=component)
    quantize = QuantizeStaticConfig(
        placement="tensorrt", activation_dtype="int8", quantize_embeddings=False, **fields
    )
    ports = {"model": cast, "ranges": ranges}
    repaired = add_repair(builder, component, options, quantize, ports, "disabled")
    return builder.add(QUANTIZE_STATIC, quantize, repaired, component=component)


def _not_run_reason() -> str:
    if not nvidia_driver_version():
        return "this machine has no NVIDIA driver"
    return "running engines is not part of this version"
