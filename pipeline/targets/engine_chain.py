"""What targets of both TensorRT runtimes share: their recipe keys, and the chain up to the engine."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.engines.preflight import EngineChoice
from pipeline.runtimes.ort_providers import Mebibytes
from pipeline.stages.arrange_attention import ARRANGE_ATTENTION, ArrangeAttentionConfig
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine_work import Refit
from pipeline.stages.fuse_attention import FUSE_ATTENTION, FuseAttentionConfig
from pipeline.stages.quantize_static import (
    QUANTIZE_STATIC,
    QuantizeStaticConfig,
    StaticOptions,
)
from pipeline.stages.quantize_weights import WeightOnlyOptions
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.targets.base import Deliverable, DeviceRun, ModelLink, TargetBase, TargetChain
from pipeline.targets.engine_profiles import engine_profiles
from pipeline.targets.repairing import REPAIRABLE_KEYS, Repairable, add_repair
from pipeline.targets.shape_ranges import ProfileShapes
from pipeline.targets.weight_only import add_scaling, add_weight_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.targets.base import ChainBuilder, NodeRef, Ref

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]
_QUANTIZED: Mapping[str, Mapping[str, str]] = {
    "int8": {"static": "{mode: static}", "weight_only": "{mode: weight_only, bits: 8}"},
    "fp8": {"static": "{mode: static}"},
    "int4": {"weight_only": "{mode: weight_only}"},
}
"""Precision -> modes of quantisation that give it, and how they are written; others take none."""
_BITS = {"int8": 8, "int4": 4}
_DECODER = (
    "engines with a cache are not fed here yet: parity is of the graph that they are built from"
)
_STRIPPED = "its weights were stripped, and until they are put back it computes nothing"


class TensorRTStaticQuantization(CalibrateConfig, StaticOptions, Repairable):
    """INT8 or FP8 products with scales from `data.calibration`; all else stays fp16.

    For FP8 `method` is `minmax` unless it is said: float8 has small numbers beside large ones, and cutting
    the large ones off costs more than it gains. MiniLM, relative error over real sentences: minmax
    0.093, percentile 0.094, mse 0.136 (INT8 with mse 0.220).
    """

    mode: Literal["static"]


class TensorRTWeightOnlyQuantization(WeightOnlyOptions):
    """Weights in 4 or 8 bits; products are fp16, and no calibration data is needed."""

    mode: Literal["weight_only"]

    @model_validator(mode="after")
    def _has_blocks(self) -> Self:
        # Seen with RTX 1.7.1: a kernel of its own for each such weight, before a product of floats.
        if self.bits == 4 and self.block_size is None:
            msg = (
                "bits 4 needs a `block_size` here: TensorRT has no product with 4-bit weights that "
                "share one scale for each output, and writes them out as floats at every run"
            )
            raise ValueError(msg)
        if self.numbers != "integers" or not self.symmetric:
            msg = (
                "`numbers: nf4` and `symmetric: false` are for ONNX Runtime: TensorRT multiplies with "
                "integers without zero points; leave them out"
            )
            raise ValueError(msg)
        if self.embeddings != "float" or self.lm_head in {"int8", "int4"}:
            msg = (
                "`embeddings` and an `lm_head` of other bits than the rest are for ONNX Runtime; "
                "here `lm_head: float` keeps it as it is"
            )
            raise ValueError(msg)
        if self.bits == 8 and self.block_size is not None:
            msg = "bits 8 takes no `block_size` here: TensorRT has 8-bit weights with one scale for each output"
            raise ValueError(msg)
        return self


Quantization = Annotated[
    TensorRTStaticQuantization | TensorRTWeightOnlyQuantization, Field(discriminator="mode")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """One engine of a target.

    Attributes:
        label: Tells engines of one target apart: `sm89`; empty when there is but one.
        runtime: What runs it.
        stage: Builds it.
        config: For the stage.
        renames: File of the stage's output -> its name in the artifact.
        ports: What the stage reads beside the graph.
    """

    label: str
    runtime: Literal["tensorrt-rtx", "tensorrt"]
    stage: AnyStage
    config: StageConfig
    renames: Mapping[str, str]
    ports: Mapping[str, Ref]


class EngineTarget(TargetBase):
    """Recipe keys of every engine."""

    precision: Precision = Field(
        description="of the matrix products; around int8, fp8 and int4 all else is fp16"
    )
    quantization: Quantization | None = Field(
        default=None,
        description="for int8 (static or weight_only), fp8 (static) and int4 (weight_only)",
    )
    attention: Literal["products", "operator"] | None = Field(
        default=None,
        description="how attention is given to the builder: as the products it consists of, or as "
        "the operator `Attention` of ONNX (opset 23); default: operator for text-generation, whose "
        "shared heads of keys and values it keeps shared, else products",
    )
    profiles: tuple[ProfileShapes, ...] | None = Field(
        default=None,
        min_length=1,
        description="shapes that the engine is made for, inside of `shapes`; default: one profile, "
        "the recipe's `shapes`; for text-generation one for the start of a text and one for each next "
        "token",
        examples=[
            [{"batch": {"min": 1, "opt": 1, "max": 1}}, {"batch": {"min": 2, "opt": 8, "max": 32}}]
        ],
    )
    workspace_mib: Mebibytes | None = Field(
        default=None,
        description="limit of the scratch memory of one layer, MiB; default: the GPU's memory",
    )
    refit: Refit = Field(
        default=False,
        description="let weights be put into the engine later: `true` any, `identical` only those it "
        "was built with; needs a GPU to build",
    )
    strip_weights: bool = Field(
        default=False, description="write the engine without its weights; needs a GPU to build"
    )
    simplify: SimplifyConfig = SimplifyConfig()

    @model_validator(mode="after")
    def _quantization_fits_precision(self) -> Self:
        modes = _QUANTIZED.get(self.precision, {})
        mode = self.quantization.mode if self.quantization is not None else ""
        if mode == "" and modes:
            forms = " or ".join(f"`quantization: {form}`" for form in modes.values())
            msg = f"precision {self.precision} needs {forms}"
            raise ValueError(msg)
        if mode and not modes:
            msg = f"precision {self.precision} takes no `quantization`"
            raise ValueError(msg)
        if mode and mode not in modes:
            forms = " or ".join(f"`quantization: {form}`" for form in modes.values())
            msg = f"precision {self.precision} takes {forms}, not mode {mode}"
            raise ValueError(msg)
        options = self.quantization
        if isinstance(options, TensorRTWeightOnlyQuantization):
            bits = _BITS[self.precision]
            if options.bits != bits:
                msg = f"precision {self.precision} needs `bits: {bits}` in `quantization`"
                raise ValueError(msg)
        elif isinstance(options, TensorRTStaticQuantization) and self.precision == "fp8":
            for name in sorted(REPAIRABLE_KEYS):
                if getattr(options, name) is not None:
                    msg = f"`{name}` tries layers in int8, and precision is fp8"
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _ranges_fit_precision(self) -> Self:
        """The ranges of fp8 hold all that was seen unless it is said; this is then written down."""
        options = self.quantization
        if (
            self.precision == "fp8"
            and isinstance(options, TensorRTStaticQuantization)
            and "method" not in options.model_fields_set
        ):
            # Frozen for everyone else. Before validation it would be another language: a validator of
            # raw input turns JSON into Python, where lists are no tuples.
            object.__setattr__(
                self, "quantization", options.model_copy(update={"method": "minmax"})
            )
        return self

    @property
    def is_weight_only(self) -> bool:
        """Whether weights alone have few bits."""
        return isinstance(self.quantization, TensorRTWeightOnlyQuantization)

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot be built here.

        Raises:
            RecipeError: the target cannot be, anywhere.
            EnvironmentMissing: a package, a GPU or a driver is missing here.
        """

    @abstractmethod
    def orders(self, options: Mapping[str, Any]) -> tuple[EngineOrder, ...]:
        """The engines of one component, given the options that all of them share."""

    @abstractmethod
    def choose(self) -> EngineChoice:
        """Which engine of this target this machine can run, or why it can run none."""

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Export, simplify, shrink masks, fuse attention, cast, quantise, and the engines.

        Raises:
            RecipeError: a pair of precision and target, or a profile, is impossible.
            EnvironmentMissing: a package, a GPU or a driver is missing here.
        """
        profiles = engine_profiles(self.profiles, builder)
        self.check()
        options = {
            "precision": self.precision,
            "is_weight_only": self.is_weight_only,
            "profiles": profiles,
            "workspace_mib": self.workspace_mib,
            "refit": self.refit,
            "strip_weights": self.strip_weights,
        }
        choice = self._choice(builder)
        models: dict[str, tuple[ModelLink, ...]] = {}
        deliverables: dict[str, tuple[Deliverable, ...]] = {}
        runs: dict[str, DeviceRun] = {}
        orders: tuple[EngineOrder, ...] = ()
        for component in builder.components:
            links = self._links(builder, component)
            models[component] = tuple(links)
            last = links[-1].node
            made = [Deliverable(node=last)]
            orders = self.orders(options)
            for order in orders:
                engine = builder.add(
                    order.stage,
                    order.config,
                    {"model": last, **order.ports},
                    component=component,
                    label=order.label,
                )
                made.append(Deliverable(node=engine, renames=order.renames))
                if choice.target and order.label in {"", choice.target}:
                    runs[component] = DeviceRun(
                        node=engine,
                        runtime=order.runtime,
                        arithmetic=links[-1].arithmetic or "quantized",
                        profiles=profiles,
                    )
            deliverables[component] = tuple(made)
        return TargetChain(
            models=models,
            deliverables=deliverables,
            not_run_reason=choice.reason or _not_run(orders, choice.target),
            proxy="" if runs else "onnxruntime-cpu",
            device_runs=runs,
        )

    def _choice(self, builder: ChainBuilder) -> EngineChoice:
        if self.strip_weights:
            return EngineChoice(reason=_STRIPPED)
        return EngineChoice(reason=_DECODER) if builder.task.has_cache else self.choose()

    def _links(self, builder: ChainBuilder, component: str) -> list[ModelLink]:
        """The graphs from export to the one that is built."""
        links: list[ModelLink] = []

        def add(node: NodeRef, arithmetic: Arithmetic) -> NodeRef:
            # The engine is strongly typed, so the graph as it is written is its nearest stand-in.
            links.append(ModelLink(node=node, optimizations="disabled", arithmetic=arithmetic))
            return node

        exported = add(builder.exported(component), "float32")
        simplified = add(
            builder.add(SIMPLIFY, self.simplify, {"model": exported}, component=component),
            "float32",
        )
        # Ranges are those of the simplified graph, so that every target of one recipe shares them.
        calibrated = simplified
        scaled = add_scaling(builder, component, self.quantization, simplified)
        if scaled != simplified:
            simplified = calibrated = add(scaled, "float32")
        plain = add(
            builder.add(
                ARRANGE_ATTENTION,
                ArrangeAttentionConfig(),
                {"model": simplified},
                component=component,
            ),
            "float32",
        )
        default = "operator" if builder.task.has_cache else "products"
        if (self.attention or default) == "operator":
            fused = builder.add(
                FUSE_ATTENTION, FuseAttentionConfig(), {"model": plain}, component=component
            )
            plain = calibrated = add(fused, "float32")
        if self.precision == "fp32":
            return links
        narrow = CastConfig(precision="bf16" if self.precision == "bf16" else "fp16")
        cast = add(
            builder.add(CAST, narrow, {"model": plain}, component=component),
            "bfloat16" if self.precision == "bf16" else "float16",
        )
        options = self.quantization
        if isinstance(options, TensorRTWeightOnlyQuantization):
            quantized = add_weight_only(
                builder, component, options, simplified=calibrated, model=cast
            )
            add(quantized, "quantized")
        elif options is not None:
            graphs = (calibrated, cast)
            add(_quantized(options, self.precision, builder, component, graphs), "quantized")
        return links


def _not_run(orders: tuple[EngineOrder, ...], target: str) -> str:
    """Of a target with several engines: which of them wait for another GPU."""
    others = [order.label for order in orders if order.label not in {"", target}]
    if not others:
        return ""
    kind = "engine" if len(others) == 1 else "engines"
    return f"of its engines this machine's GPU runs {target} alone; not run: {kind} for " + (
        ", ".join(others)
    )


def _quantized(
    options: TensorRTStaticQuantization,
    precision: Precision,
    builder: ChainBuilder,
    component: str,
    graphs: tuple[NodeRef, NodeRef],
) -> NodeRef:
    """Quantise the cast graph, the second of two, with ranges of the float32 one, the first."""
    calibrated, cast = graphs
    fields = options.model_dump(exclude={"mode", *REPAIRABLE_KEYS})
    calibrate = CalibrateConfig(
        **{name: fields.pop(name) for name in CalibrateConfig.model_fields}
    )
    ports = {"model": calibrated, "samples": builder.calibration_samples()}
    ranges = builder.add(CALIBRATE, calibrate, ports, component=component)
    narrow: Literal["float8", "int8"] = "float8" if precision == "fp8" else "int8"
    quantize = QuantizeStaticConfig(
        placement="tensorrt",
        activation_dtype=narrow,
        weight_dtype=narrow,
        quantize_embeddings=False,
        **fields,
    )
    ports = {"model": cast, "ranges": ranges}
    repaired = add_repair(builder, component, options, quantize, ports, "disabled")
    return builder.add(QUANTIZE_STATIC, quantize, repaired, component=component)
