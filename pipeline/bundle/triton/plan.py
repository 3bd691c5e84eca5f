"""Which models a repository gets from an artifact, and how each is configured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pipeline.bundle.triton.configs import (
    Batching,
    ModelSpec,
    Tensor,
    WarmUp,
    dtype_name,
)
from pipeline.errors import ArtifactError
from pipeline.runtimes.ort_providers import ProviderOptions, ProviderPlan
from pipeline.tasks import BATCH_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.bundle.triton.configs import Kind
    from pipeline.bundle.triton.source import ArtifactSource, EngineFile, TargetSource
    from pipeline.graph.model_facts import TensorFacts

TOKEN_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
DEFAULT_DELAY_US: Final = 1000
_DELAY_SHARE: Final = 0.1
"""Of the median time of one sample: waiting for company costs at most that much."""
_MAX_DELAY_US: Final = 5000
_NOT_SERVED: Final = frozenset(
    {
        "device_id",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
    }
)
_TARGET: Final = re.compile(r"sm([0-9]+)([0-9])")


ENGINE_PRECISIONS: Final = frozenset({"bf16", "fp8"})
"""Precisions of graphs that builders of engines read, and ONNX Runtime hardly can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """One model, and what it is of.

    Attributes:
        target: Where its files come from.
        is_main: Text goes to it; a target has one such model.
    """

    spec: ModelSpec
    target: TargetSource
    is_main: bool


def is_of_engines_alone(target: TargetSource) -> bool:
    """Whether its graph is for a builder of engines, and ONNX Runtime may well refuse to load it.

    ONNX Runtime 1.31 has kernels in bfloat16 and float8 for few operators, and none on the CPU. A
    server that cannot load one model of its repository does not start.
    """
    return _has_engines(target) and target.declaration.precision in ENGINE_PRECISIONS


def _has_engines(target: TargetSource) -> bool:
    return bool(target.engines) or target.has_rtx_engines


def plan_models(
    source: ArtifactSource, base: str, *, is_named: bool = False
) -> Iterator[PlannedModel]:
    """The models of every target: its graph, and its engines where Triton can read them.

    Args:
        source: The artifact.
        base: What every name begins with.
        is_named: The targets were asked for by name: graphs `is_of_engines_alone` are served too.

    Raises:
        ArtifactError: something in the artifact has no form in Triton.
    """
    for target in source.targets:
        has_engines = bool(target.engines)
        of_engines = _has_engines(target)
        name = f"{base}-{target.declaration.name}"
        graph_name = f"{name}-onnx" if of_engines else name
        if has_engines:
            yield PlannedModel(
                spec=_engine_spec(source, target, name), target=target, is_main=True
            )
        if is_of_engines_alone(target) and not is_named:
            continue
        spec = _graph_spec(source, target, graph_name, of_engines=of_engines)
        yield PlannedModel(spec=spec, target=target, is_main=not has_engines)


def tokenizer_trouble(source: ArtifactSource, models: Sequence[PlannedModel]) -> str:
    """Why there can be no tokenizer in front of the models; empty when there can be one."""
    if source.task.modality != "text":
        return f"task {source.task.name} has no text: the models take prepared images"
    for model in models:
        for tensor in model.spec.inputs:
            if tensor.name not in TOKEN_INPUTS or tensor.dtype != "TYPE_INT64":
                return f"no tokenizer makes input `{tensor.name}` of `{model.spec.name}`"
            if tensor.axes != (SEQUENCE_AXIS,):
                return (
                    f"task {source.task.name} has more axes than batch and sequence: the models "
                    "take prepared tokens"
                )
    return ""


def text_names(source: ArtifactSource) -> tuple[str, ...]:
    """Names of the texts that an ensemble takes: the task's own, such as question and context."""
    columns = source.task.columns
    pair = columns.get("text_pair")
    if pair is None and source.has_pairs:
        pair = "text_pair"
    return (columns["text"],) if pair is None else (columns["text"], pair)


def _graph_spec(
    source: ArtifactSource, target: TargetSource, name: str, *, of_engines: bool
) -> ModelSpec:
    where = f"{target.declaration.name}/model.onnx"
    shapes = [(t.name, t.dtype, t.shape) for t in target.graph.inputs]
    outputs = [(t.name, t.dtype, t.shape) for t in target.graph.outputs]
    is_batching = _is_batching([*shapes, *outputs])
    provider = target.declaration.provider
    kind: Kind = "KIND_GPU" if of_engines or provider != "cpu" else "KIND_CPU"
    threads = source.threads if kind == "KIND_CPU" else None
    return ModelSpec(
        name=name,
        backend="onnxruntime",
        kind=kind,
        inputs=_tensors(shapes, where, is_batching=is_batching),
        outputs=_tensors(outputs, where, is_batching=is_batching),
        batching=_batching(source, target, source.batch.max if is_batching else 0),
        warm_ups=tuple(_warm_ups(source, is_batching=is_batching)),
        parameters={} if threads is None else {"intra_op_thread_count": str(threads)},
        accelerator="" if provider == "cpu" else provider,
        accelerator_options=_provider_options(source, target),
        # The graph of an engine was compared with the checkpoint as it is written.
        runs_as_written=of_engines,
    )


def _provider_options(source: ArtifactSource, target: TargetSource) -> dict[str, str]:
    """What the provider was told when it was measured, under the names that Triton has for it.

    Left out are the number of the GPU, which is the server's to choose, and directories of here.
    Source: the table in onnxruntime_backend's README.
    """
    provider = target.declaration.provider
    if provider == "cpu":
        return {}
    plan = ProviderPlan(
        provider=provider, options=target.declaration.provider_options or ProviderOptions()
    )
    profile = {}
    if provider == "tensorrt":
        profile = {
            tensor.name: (
                _sized(source, tensor, "min"),
                _sized(source, tensor, "opt"),
                _sized(source, tensor, "max"),
            )
            for tensor in target.graph.inputs
        }
    told = plan.session_options(profile, Path())
    made = {name: value for name, value in told.items() if name not in _NOT_SERVED}
    if made.pop("trt_fp16_enable", "0") == "1":
        made["precision_mode"] = "FP16"
    if "trt_max_workspace_size" in made:
        made["max_workspace_size_bytes"] = made.pop("trt_max_workspace_size")
    return made


def _sized(
    source: ArtifactSource, tensor: TensorFacts, which: Literal["min", "opt", "max"]
) -> tuple[int, ...]:
    """An input's shape at one of the recipe's sizes."""
    ranges = {BATCH_AXIS: source.batch, **source.sizes}
    sizes: list[int] = []
    for dim in tensor.shape:
        if isinstance(dim, str) and dim not in ranges:
            raise ArtifactError(f"axis `{dim}` of input `{tensor.name}` has no size in the recipe")
        sizes.append(dim if isinstance(dim, int) else getattr(ranges[dim], which))
    return tuple(sizes)


def _engine_spec(source: ArtifactSource, target: TargetSource, name: str) -> ModelSpec:
    """Engines of several GPUs are one model: their interfaces and profiles must agree."""
    first = target.engines[0].facts
    for engine in target.engines[1:]:
        facts = engine.facts
        if (facts.inputs, facts.outputs) != (first.inputs, first.outputs) or (
            facts.profiles != first.profiles
        ):
            raise ArtifactError(
                f"{engine.path.name} takes other inputs or shapes than "
                f"{target.engines[0].path.name}, so the two are not one model",
                where=target.declaration.name,
            )
    where = target.engines[0].path.name
    inputs = [(t.name, t.dtype, t.dims) for t in first.inputs]
    outputs = [(t.name, t.dtype, t.dims) for t in first.outputs]
    is_batching = _is_batching([*inputs, *outputs])
    largest = [p.axes[BATCH_AXIS][2] for p in first.profiles if BATCH_AXIS in p.axes]
    # The server uses every profile that is listed for every batch up to the limit.
    limit = min([source.batch.max, *largest]) if is_batching else 0
    return ModelSpec(
        name=name,
        backend="tensorrt",
        kind="KIND_GPU",
        inputs=_tensors(inputs, where, is_batching=is_batching),
        outputs=_tensors(outputs, where, is_batching=is_batching),
        batching=_batching(source, target, limit),
        warm_ups=tuple(_profile_warm_ups(target.engines[0], limit)),
        engines={
            compute_capability(engine.facts.target): plan_file(engine) for engine in target.engines
        },
        profiles=len(first.profiles),
    )


def plan_file(engine: EngineFile) -> str:
    """The engine's name in the repository."""
    return f"model_{engine.facts.target}.plan"


def compute_capability(target: str) -> str:
    """`sm89` as Triton has it, `8.9`.

    Raises:
        ArtifactError: it is no such name.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ArtifactError(f"`{target}` is no compute capability such as sm89")
    return f"{found[1]}.{found[2]}"


_Shape = tuple[int | str | None, ...]


def _is_batching(tensors: Iterable[tuple[str, str, _Shape]]) -> bool:
    """Whether the first axis of every tensor is the batch."""
    return all(shape and shape[0] == BATCH_AXIS for _, _, shape in tensors)


def _tensors(
    tensors: Iterable[tuple[str, str, _Shape]], where: str, *, is_batching: bool
) -> tuple[Tensor, ...]:
    made = []
    for name, dtype, whole in tensors:
        shape = whole[1:] if is_batching else whole
        made.append(
            Tensor(
                name=name,
                dtype=dtype_name(dtype, where=where),
                # The server has no tensors without an axis beside the batch.
                dims=tuple(dim if isinstance(dim, int) else -1 for dim in shape) or (1,),
                axes=tuple(dim if isinstance(dim, str) else "" for dim in shape) or ("",),
            )
        )
    return tuple(made)


def _batching(source: ArtifactSource, target: TargetSource, max_batch: int) -> Batching:
    """Sizes that were measured; else those that the profiles are tuned for."""
    delay = DEFAULT_DELAY_US
    measured = target.benchmark
    if measured is not None:
        sizes = {result.batch for result in measured.shapes}
        smallest = min(measured.shapes, key=lambda result: result.batch)
        each_us = smallest.candidate.latency_p50_ms * 1000 / smallest.batch
        delay = max(100, min(_MAX_DELAY_US, round(each_us * _DELAY_SHARE / 100) * 100))
    elif target.engines:
        profiles = target.engines[0].facts.profiles
        sizes = {profile.axes[BATCH_AXIS][1] for profile in profiles if BATCH_AXIS in profile.axes}
    else:
        sizes = {source.batch.opt}
    preferred = tuple(sorted(size for size in sizes if 1 < size <= max_batch))
    return Batching(max_batch=max_batch, preferred=preferred, max_delay_us=delay)


def _warm_ups(source: ArtifactSource, *, is_batching: bool) -> Iterator[WarmUp]:
    """One request each at the recipe's smallest, usual and largest shapes, if they differ."""
    seen: list[tuple[int, Mapping[str, int]]] = []
    for which in ("min", "opt", "max"):
        batch: int = getattr(source.batch, which)
        sizes = {axis: getattr(sizes, which) for axis, sizes in source.sizes.items()}
        if not is_batching:
            batch, sizes = 1, {BATCH_AXIS: batch, **sizes}
        if (batch, sizes) not in seen:
            seen.append((batch, sizes))
            yield WarmUp(name=which, batch=batch, sizes=sizes)


def _profile_warm_ups(engine: EngineFile, limit: int) -> Iterator[WarmUp]:
    """One request at the usual shape of each profile."""
    for number, profile in enumerate(engine.facts.profiles):
        sizes = {axis: usual for axis, (_, usual, _) in profile.axes.items()}
        batch = min(sizes.pop(BATCH_AXIS, 1), limit) if limit else 1
        if not limit:
            sizes = {axis: usual for axis, (_, usual, _) in profile.axes.items()}
        yield WarmUp(name=f"profile{number}", batch=max(batch, 1), sizes=sizes)
