"""ONNX Runtime: on the CPU fp32, INT8 and INT4 weights; on GPUs, with their providers, fp32 and fp16."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import RecipeError
from pipeline.runtimes.ort_providers import (
    Provider,
    ProviderOptions,
    ProviderPlan,
    require_provider,
)
from pipeline.source.generation_config import read_stated_length
from pipeline.stages.base import INLINE_LIMIT_BYTES
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.choose_bits import MixedOptions  # noqa: TC001  (pydantic reads it)
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.pack_weights import PACK_WEIGHTS, AccuracyLevel, PackWeightsConfig
from pipeline.stages.provider_engine import PROVIDER_ENGINE, ProviderEngineConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_static import (
    QUANTIZE_STATIC,
    OnnxRuntimeStaticOptions,
    QuantizeStaticConfig,
)
from pipeline.stages.quantize_weights import SCALED, WeightOnlyOptions
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.stages.simplify_and_fuse import SIMPLIFY_AND_FUSE, SimplifyAndFuseConfig
from pipeline.stages.static_cache import STATIC_CACHE, StaticCacheConfig
from pipeline.targets.base import Deliverable, DeviceRun, ModelLink, TargetBase, TargetChain
from pipeline.targets.repairing import REPAIRABLE_KEYS, Repairable, add_repair
from pipeline.targets.weight_only import add_from_export, add_scaling, add_weight_only, observes

if TYPE_CHECKING:
    from pipeline.parity.tolerances import Arithmetic
    from pipeline.targets.base import ChainBuilder, NodeRef
    from pipeline.tasks import Task


class DynamicQuantization(QuantizeDynamicConfig, Repairable):
    """INT8 weights; activation scales are taken at run time, over each batch."""

    mode: Literal["dynamic"]


class StaticQuantization(CalibrateConfig, OnnxRuntimeStaticOptions, Repairable):
    """INT8 weights; activation scales are taken beforehand, from `data.calibration`."""

    mode: Literal["static"]


class WeightOnlyQuantization(WeightOnlyOptions):
    """INT4 or INT8 weights and nothing else."""

    mode: Literal["weight_only"]
    form: Literal["matmul_nbits", "matmul_bnb4", "qdq"] | None = Field(
        default=None,
        description="how products with such weights are written: matmul_nbits is ONNX Runtime's own "
        "operator, with the weights as its kernel reads them; qdq is DequantizeLinear and MatMul, of "
        "which ONNX Runtime makes the same for 4 bits each time it loads the graph; matmul_bnb4 is its "
        "operator for `numbers: nf4`, which have no other form. Default: matmul_nbits for "
        "text-generation, else qdq",
    )
    accuracy_level: AccuracyLevel | None = Field(
        default=None,
        description="for form matmul_nbits: 0 leaves activations in float32, 4 (the default) rounds "
        "them to 8 bits, block by block, as ONNX Runtime does with form qdq too; faster",
    )

    @model_validator(mode="after")
    def _accuracy_level_fits_form(self) -> Self:
        if self.numbers == "nf4":
            _require_normal_float_form(self)
        elif self.form == "matmul_bnb4":
            msg = "form matmul_bnb4 is for `numbers: nf4`"
            raise ValueError(msg)
        if self.form == "qdq" and self.accuracy_level is not None:
            msg = (
                "form qdq takes no `accuracy_level`: ONNX Runtime chooses when it loads the graph"
            )
            raise ValueError(msg)
        return self

    def packs(self, task: Task) -> bool:
        """Whether products are written as ONNX Runtime's own operator."""
        if self.numbers == "nf4":  # written as an operator at once
            return False
        return self.form == "matmul_nbits" or (self.form is None and task.has_cache)

    def signs(self, task: Task) -> bool:
        """Whether scales may be negative: ONNX Runtime's own operator takes them, TensorRT may not."""
        return self.symmetric and self.packs(task)

    mixed: MixedOptions | None = Field(
        default=None,
        description="of 4 bits: some products get 8, those that lose most on `data.calibration`",
        examples=[{"bits_budget": 4.5}],
    )

    @model_validator(mode="after")
    def _mixed_fits(self) -> Self:
        if self.mixed is not None and (self.bits != 4 or self.method == SCALED):
            msg = f"`mixed` is for bits 4, and not for method {SCALED}"
            raise ValueError(msg)
        if self.mixed is not None and (self.numbers == "nf4" or not self.symmetric):
            msg = "`mixed` chooses between integers without zero points: leave `numbers` and `symmetric` out"
            raise ValueError(msg)
        if self.mixed is not None and self.lm_head in {"int8", "int4"}:
            msg = "`mixed` chooses the bits of the LM head too: leave `lm_head` out"
            raise ValueError(msg)
        return self


def _require_normal_float_form(options: WeightOnlyQuantization) -> None:
    if options.form in {"qdq", "matmul_nbits"}:
        msg = (
            f"form {options.form} has integers: `numbers: nf4` are written as ONNX Runtime's MatMulBnb4, "
            "leave `form` out"
        )
        raise ValueError(msg)
    if options.accuracy_level is not None:
        msg = "`numbers: nf4` takes no `accuracy_level`: its kernel multiplies floats"
        raise ValueError(msg)


Quantization = Annotated[
    DynamicQuantization | StaticQuantization | WeightOnlyQuantization, Field(discriminator="mode")
]


class OnnxRuntimeTarget(TargetBase):
    """A model for one of ONNX Runtime's execution providers."""

    runtime: Literal["onnxruntime"]
    precision: Literal["fp32", "fp16", "int8", "int4"]
    quantization: Quantization | None = Field(default=None, description="for int8 and int4")
    provider: Provider = Field(
        default="cpu",
        description="what runs it: cpu, or on an NVIDIA GPU cuda or tensorrt (fp32 and fp16)",
    )
    provider_options: ProviderOptions | None = Field(
        default=None, description="for provider cuda or tensorrt"
    )
    simplify: SimplifyConfig = SimplifyConfig()
    fuse: FuseConfig = FuseConfig()
    static_cache: StaticCacheConfig | None = Field(
        default=None,
        description="for decoders on the CPU: a cache of a fixed length, written in place; default: "
        "it grows with the text",
        examples=[{"length": 512}],
    )

    @model_validator(mode="after")
    def _quantization_fits_precision(self) -> Self:
        fault = _provider_fault(self) or _precision_fault(self.precision, self.quantization)
        if fault:
            raise ValueError(fault)
        return self

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """Export, simplify, fuse, and quantise when asked to; for a GPU see `_device_chain`.

        Raises:
            RecipeError: a decoder with a cache is wanted for a GPU.
            EnvironmentMissing: this ONNX Runtime lacks the provider, or there is no GPU for it.
        """
        if self.static_cache is not None:
            _check_static_cache(self.static_cache.length, self.provider, builder)
        if self.provider != "cpu":
            if builder.task.has_cache:
                raise RecipeError(
                    f"task `{builder.task.name}` has no targets of provider `{self.provider}`: what "
                    "runs there is compared and timed within ranges of its inputs' axes, and the "
                    "cache has none yet",
                    hint="leave `provider` out",
                )
            require_provider(self.provider, (self.provider_options or ProviderOptions()).device_id)
            return self._device_chain(builder, self.provider)
        models: dict[str, tuple[ModelLink, ...]] = {}
        deliverables: dict[str, tuple[Deliverable, ...]] = {}
        for component in builder.components:
            exported = builder.exported(component)
            links, last = self._until_packed(builder, component, exported)
            if (packed := self._packed(builder, component, last)) is not None:
                last = packed
                links.append(ModelLink(node=last, optimizations="all", arithmetic="quantized"))
            if self.static_cache is not None:
                last = builder.add(
                    STATIC_CACHE, self.static_cache, {"model": last}, component=component
                )
                links.append(replace(links[-1], node=last))
            models[component] = tuple(links)
            deliverables[component] = (Deliverable(node=last),)
        return TargetChain(models=models, deliverables=deliverables, runtime="onnxruntime")

    def _until_packed(
        self, builder: ChainBuilder, component: str, exported: NodeRef
    ) -> tuple[list[ModelLink], NodeRef]:
        """The graphs up to the fused or quantised one, and the last of them."""
        options = self.quantization
        # Before fusion a graph is compared as it is written; afterwards as users will run it.
        first = ModelLink(node=exported, optimizations="disabled", arithmetic="float32")
        if (
            isinstance(options, WeightOnlyQuantization)
            and self._is_in_one(builder)
            and not builder.is_looked_at(SIMPLIFY_AND_FUSE.name)
        ):
            both = SimplifyAndFuseConfig(simplify=self.simplify, fuse=self.fuse)
            signs = options.signs(builder.task)
            last = add_from_export(
                builder, component, options, exported=exported, first=both, signed_scales=signs
            )
            return [first, ModelLink(node=last, optimizations="all", arithmetic="quantized")], last
        plain, last = self._fused(builder, component, exported)
        links = [first, *(replace(first, node=node) for node in plain)]
        links.append(ModelLink(node=last, optimizations="all", arithmetic="float32"))
        if options is not None:
            last = self._quantized(builder, component, plain[0] if plain else last, last)
            links.append(ModelLink(node=last, optimizations="all", arithmetic="quantized"))
        return links, last

    def _is_in_one(self, builder: ChainBuilder) -> bool:
        """Whether weights are large, and nothing reads the graph that is simplified but not fused."""
        is_observed = isinstance(self.quantization, StaticQuantization) or observes(
            self.quantization
        )
        return builder.source.float32_bytes > INLINE_LIMIT_BYTES and not is_observed

    def _fused(
        self, builder: ChainBuilder, component: str, exported: NodeRef
    ) -> tuple[tuple[NodeRef, ...], NodeRef]:
        """The graphs between the exported and the fused one, the simplified first; and the fused one.

        There are none where weights are large and nothing else reads the simplified graph.
        """
        if self._is_in_one(builder):
            both = SimplifyAndFuseConfig(simplify=self.simplify, fuse=self.fuse)
            ports = {"model": exported}
            return (), builder.add(SIMPLIFY_AND_FUSE, both, ports, component=component)
        simplified = builder.add(SIMPLIFY, self.simplify, {"model": exported}, component=component)
        plain = add_scaling(builder, component, self.quantization, simplified)
        fused = builder.add(FUSE, self.fuse, {"model": plain}, component=component)
        return tuple(dict.fromkeys((simplified, plain))), fused

    def _packed(self, builder: ChainBuilder, component: str, quantized: NodeRef) -> NodeRef | None:
        """The graph with ONNX Runtime's own operator for weights in few bits, when it is wanted."""
        options = self.quantization
        if not isinstance(options, WeightOnlyQuantization) or not options.packs(builder.task):
            return None
        level = 4 if options.accuracy_level is None else options.accuracy_level
        config = PackWeightsConfig(accuracy_level=level)
        return builder.add(PACK_WEIGHTS, config, {"model": quantized}, component=component)

    def _device_chain(
        self, builder: ChainBuilder, provider: Literal["cuda", "tensorrt"]
    ) -> TargetChain:
        """Export, simplify, and cast for fp16; the providers fuse for themselves.

        CUDA's takes fused operators in float32. The graphs are compared on the CPU as they are
        made, and what is delivered once more with the provider itself.
        """
        plan = ProviderPlan(provider=provider, options=self.provider_options or ProviderOptions())
        models: dict[str, tuple[ModelLink, ...]] = {}
        deliverables: dict[str, tuple[Deliverable, ...]] = {}
        runs: dict[str, DeviceRun] = {}
        for component in builder.components:
            exported = builder.exported(component)
            last = builder.add(SIMPLIFY, self.simplify, {"model": exported}, component=component)
            links = [
                ModelLink(node=exported, optimizations="disabled", arithmetic="float32"),
                ModelLink(node=last, optimizations="disabled", arithmetic="float32"),
            ]
            if self.precision == "fp16":
                cast = CastConfig(precision="fp16")
                last = builder.add(CAST, cast, {"model": last}, component=component)
                links.append(ModelLink(node=last, optimizations="disabled", arithmetic="float16"))
            elif provider == "cuda":
                last = builder.add(FUSE, self.fuse, {"model": last}, component=component)
                links.append(ModelLink(node=last, optimizations="all", arithmetic="float32"))
            cache = None
            if provider == "tensorrt":
                built = ProviderEngineConfig(plan=plan, profile=dict(builder.profile))
                cache = builder.add(PROVIDER_ENGINE, built, {"model": last}, component=component)
            runs[component] = DeviceRun(
                node=last,
                runtime="onnxruntime",
                arithmetic=_device_arithmetic(self.precision, plan),
                provider=plan,
                cache=cache,
            )
            models[component] = tuple(links)
            deliverables[component] = (Deliverable(node=last),)
        return TargetChain(
            models=models, deliverables=deliverables, runtime="onnxruntime", device_runs=runs
        )

    def _quantized(
        self, builder: ChainBuilder, component: str, simplified: NodeRef, fused: NodeRef
    ) -> NodeRef:
        options = self.quantization
        if isinstance(options, StaticQuantization):
            calibrate, quantize = _static_configs(options)
            ports = {"model": simplified, "samples": builder.calibration_samples()}
            # Of the simplified graph, so that every target of one recipe shares the ranges.
            ranges = builder.add(CALIBRATE, calibrate, ports, component=component)
            ports = {"model": fused, "ranges": ranges}
            repaired = add_repair(builder, component, options, quantize, ports, "all")
            return builder.add(QUANTIZE_STATIC, quantize, repaired, component=component)
        if options is None:
            raise ValueError("this target is not quantised")
        if isinstance(options, WeightOnlyQuantization):
            signs = options.signs(builder.task)
            return add_weight_only(
                builder,
                component,
                options,
                simplified=simplified,
                model=fused,
                signed_scales=signs,
            )
        config = QuantizeDynamicConfig(**options.model_dump(exclude={"mode", *REPAIRABLE_KEYS}))
        repaired = add_repair(builder, component, options, config, {"model": fused}, "all")
        return builder.add(QUANTIZE_DYNAMIC, config, repaired, component=component)


def _check_static_cache(length: int, provider: Provider, builder: ChainBuilder) -> None:
    """Refuse a cache of a fixed length where there is none, or where texts are longer."""
    task = builder.task
    if provider != "cpu" or not task.has_cache or task.parts:
        what = f"task `{task.name}`" if provider == "cpu" else f"provider `{provider}`"
        raise RecipeError(
            f"{what} has no `static_cache`: it is for decoders without an encoder, on the CPU",
            hint="leave `static_cache` out",
        )
    longest = builder.profile["sequence"][2]
    if length < longest:
        raise RecipeError(
            f"a static cache of {length} tokens is shorter than the texts of {longest} tokens that "
            "`shapes.sequence` allows",
            hint=f"set `static_cache.length` to {longest} or more, prompt and new tokens together",
        )
    positions = builder.source.max_positions
    if positions is not None and length > positions:
        raise RecipeError(
            f"a static cache of {length} tokens is longer than the {positions} positions of the "
            "checkpoint",
            hint=f"set `static_cache.length` to {positions} or less",
        )
    stated = read_stated_length(builder.source)
    if stated is not None and length < stated[1]:
        key, tokens = stated
        raise RecipeError(
            f"a static cache of {length} tokens is shorter than the texts of {tokens} tokens that the "
            f"checkpoint's generation_config.json allows (`{key}`)",
            hint=f"set `static_cache.length` to {tokens} or more, or lower `{key}` in a copy of "
            "the checkpoint",
        )


def _device_arithmetic(precision: str, plan: ProviderPlan) -> Arithmetic:
    """TF32 has the 10 bits of float16 in its products; TensorRT takes it where it is quicker."""
    is_exact = plan.provider == "cuda" and not plan.options.use_tf32
    return "float32" if is_exact and precision == "fp32" else "float16"


def _provider_fault(target: OnnxRuntimeTarget) -> str:
    """Why a provider does not fit the rest of the target; empty when it does."""
    provider, precision, options = target.provider, target.precision, target.provider_options
    if provider == "cpu":
        if options is not None:
            return "`provider_options` are for `provider: cuda` or `provider: tensorrt`"
        needs_gpu = "precision fp16 needs `provider: cuda` or `provider: tensorrt`"
        return needs_gpu if precision == "fp16" else ""
    if precision not in {"fp32", "fp16"}:
        return (
            f"provider {provider} takes precision fp32 or fp16: operators of {precision} "
            "would run on the CPU in its place"
        )
    return "" if options is None else _options_fault(options, provider, precision)


def _options_fault(options: ProviderOptions, provider: Provider, precision: str) -> str:
    if foreign := options.foreign_to(provider):
        names = ", ".join(f"`{name}`" for name in foreign)
        return f"{names}: of no meaning to provider {provider}"
    if options.trt_fp16_enable and precision == "fp16":
        return "`trt_fp16_enable` lets TensorRT cast a float32 graph, and precision is fp16"
    return ""


def _precision_fault(precision: str, quantization: Quantization | None) -> str:
    """Why a precision and a quantisation do not fit each other; empty when they do."""
    if precision in {"fp32", "fp16"}:
        return "" if quantization is None else f"precision {precision} takes no `quantization`"
    if precision == "int4":
        if isinstance(quantization, WeightOnlyQuantization) and quantization.bits == 4:
            return ""
        return (
            "precision int4 needs `quantization: {mode: weight_only}` with `bits: 4`, its default"
        )
    if quantization is None:
        return (
            "precision int8 needs `quantization: {mode: dynamic}`, `{mode: static}` or "
            "`{mode: weight_only, bits: 8}`"
        )
    if isinstance(quantization, WeightOnlyQuantization) and quantization.bits != 8:
        return "precision int8 needs `bits: 8` with `mode: weight_only`"
    return ""


def _static_configs(options: StaticQuantization) -> tuple[CalibrateConfig, QuantizeStaticConfig]:
    fields = options.model_dump(exclude={"mode", *REPAIRABLE_KEYS})
    ranges = {name: fields.pop(name) for name in CalibrateConfig.model_fields}
    return CalibrateConfig(**ranges), QuantizeStaticConfig(placement="onnxruntime-cpu", **fields)
