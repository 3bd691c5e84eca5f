"""What Triton holds against a model repository when it loads one, without the server.

A rule yields a sentence for each thing that is wrong. Sources, of 2026: triton-inference-server/core
`src/model_config_utils.cc` (ValidateModelConfig, ValidateEnsembleSchedulingConfig, ValidateIOShape,
ValidateInstanceGroup), `src/ensemble_scheduler/ensemble_utils.cc`, `src/backend_model_instance.cc`
(GenerateWarmupData), and the READMEs of onnxruntime_backend and tensorrt_backend.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pipeline.bundle.triton.schema import data_type_name, parse_config
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CONFIG_FILE: Final = "config.pbtxt"
WARM_UP_FOLDER: Final = "warmup"
_ENSEMBLE: Final = "ensemble"
_CAPABILITY: Final = re.compile(r"[1-9][0-9]*\.[0-9]")
_MAX_BATCH_SIZE: Final = re.compile(r"(?m)^max_batch_size\s*:")
_ITEM_BYTES: Final = {
    "TYPE_BOOL": 1,
    "TYPE_UINT8": 1,
    "TYPE_INT8": 1,
    "TYPE_INT16": 2,
    "TYPE_UINT16": 2,
    "TYPE_FP16": 2,
    "TYPE_BF16": 2,
    "TYPE_INT32": 4,
    "TYPE_UINT32": 4,
    "TYPE_FP32": 4,
    "TYPE_INT64": 8,
    "TYPE_UINT64": 8,
    "TYPE_FP64": 8,
}
_DEFAULT_FILES: Final = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "python": "model.py",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a repository: its folder, and its configuration as text and as message."""

    folder: Path
    text: str
    config: Any


Repository: TypeAlias = "Mapping[str, Model]"


def read_repository(root: Path) -> dict[str, Model]:
    """The models of a repository, by the name of their folder.

    Raises:
        ArtifactError: a configuration is not there, or the server would not read it.
    """
    models = {}
    for folder in sorted(child for child in root.iterdir() if child.is_dir()):
        path = folder / CONFIG_FILE
        where = f"{folder.name}/{CONFIG_FILE}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"it cannot be read: {error}", where=where) from error
        models[folder.name] = Model(
            folder=folder, text=text, config=parse_config(text, where=where)
        )
    return models


def repository_problems(root: Path) -> tuple[str, ...]:
    """Everything that the server would not load, each with the file it is in.

    Raises:
        ArtifactError: a configuration cannot be read at all.
    """
    models = read_repository(root)
    return tuple(
        f"{name}/{CONFIG_FILE}: {problem}"
        for name, model in models.items()
        for rule in RULES
        for problem in rule(model, models)
    )


def _name(model: Model, _models: Repository) -> Iterator[str]:
    name = model.config.name
    if not name:
        yield "`name` is missing"
    elif name != model.folder.name:
        yield f"`name` is {name}, and its folder is {model.folder.name}"


def _backend(model: Model, _models: Repository) -> Iterator[str]:
    config = model.config
    if config.platform == _ENSEMBLE:
        if config.backend:
            yield f"an ensemble has no backend, and `backend` is {config.backend}"
        if not config.HasField("ensemble_scheduling"):
            yield "`ensemble_scheduling` is missing"
    elif config.HasField("ensemble_scheduling"):
        yield "`ensemble_scheduling` is for `platform: ensemble`"
    elif not config.backend:
        yield f"`backend` is missing, and platform {config.platform or 'none'} is not `ensemble`"


def _max_batch_size(model: Model, _models: Repository) -> Iterator[str]:
    if model.config.max_batch_size < 0:
        yield f"`max_batch_size` is {model.config.max_batch_size}, and must be 0 or more"
    if not _MAX_BATCH_SIZE.search(model.text):
        yield "`max_batch_size` is not written, and the server would guess one"


def _interface(model: Model, _models: Repository) -> Iterator[str]:
    for kind, tensors in (("input", model.config.input), ("output", model.config.output)):
        if not tensors:
            yield f"`{kind}` is missing"
        names = [tensor.name for tensor in tensors]
        for tensor in tensors:
            if not tensor.name:
                yield f"an {kind} has no `name`"
            if names.count(tensor.name) > 1:
                yield f"{kind} `{tensor.name}` is there twice"
            if not tensor.data_type:
                yield f"{kind} `{tensor.name}` has no `data_type`"
            if not tensor.dims:
                yield f"{kind} `{tensor.name}` has no `dims`"
            for dim in tensor.dims:
                if dim != -1 and dim < 1:
                    yield f"{kind} `{tensor.name}` has a dimension of {dim}; -1 is any size"


def _dynamic_batching(model: Model, _models: Repository) -> Iterator[str]:
    config = model.config
    if not config.HasField("dynamic_batching"):
        return
    if config.max_batch_size < 1:
        yield "`dynamic_batching` needs a `max_batch_size` of 1 or more"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            yield f"preferred batch {size} is not within 1 to max_batch_size {config.max_batch_size}"


def _instances(model: Model, _models: Repository) -> Iterator[str]:
    config = model.config
    for group in config.instance_group:
        kind = type(group).Kind.Name(group.kind)
        if kind in {"KIND_CPU", "KIND_MODEL"} and group.gpus:
            yield f"an instance group of {kind} names GPUs"
        if group.count < 0:
            yield f"an instance group has a count of {group.count}"
        if group.profile and config.backend != "tensorrt":
            yield f"profiles are for backend tensorrt, not {config.backend or 'an ensemble'}"
        for profile in group.profile:
            if not profile.isdigit():
                yield f"profile `{profile}` is not the number of one"
        if config.backend == "tensorrt" and kind != "KIND_GPU":
            yield f"TensorRT runs on a GPU, and an instance group is {kind}"


def _versions(model: Model, _models: Repository) -> Iterator[str]:
    folders = [child.name for child in model.folder.iterdir() if child.is_dir()]
    versions = [name for name in folders if re.fullmatch(r"[1-9][0-9]*", name)]
    others = set(folders) - set(versions) - {WARM_UP_FOLDER}
    if not versions:
        yield "there is no folder of a version, such as `1`"
    for name in sorted(others):
        yield f"folder `{name}` is not the number of a version"
    if model.config.platform == _ENSEMBLE:
        return
    for version in versions:
        for file in _model_files(model.config):
            path = model.folder / version / file
            # A model with weights beside it is a folder that holds a file of the same name.
            if not path.is_file() and not (path / file).is_file():
                yield f"`{version}/{file}` is missing"


def _model_files(config: Any) -> Iterator[str]:
    if config.cc_model_filenames:
        yield from sorted(config.cc_model_filenames.values())
    elif config.default_model_filename:
        yield config.default_model_filename
    elif config.backend in _DEFAULT_FILES:
        yield _DEFAULT_FILES[config.backend]


def _capabilities(model: Model, _models: Repository) -> Iterator[str]:
    for capability in model.config.cc_model_filenames:
        if not _CAPABILITY.fullmatch(capability):
            yield f"`{capability}` is no compute capability such as 8.9"


def _engines(model: Model, _models: Repository) -> Iterator[str]:
    """The tensorrt backend reads full TensorRT's engines only."""
    if model.config.backend != "tensorrt":
        return
    for path in sorted(model.folder.glob("*/*.plan")):
        with path.open("rb") as file:
            start = file.read(4)
        if start != b"ftrt":
            yield f"`{path.name}` is no engine of full TensorRT: it starts with {start!r}"


def _warm_ups(model: Model, _models: Repository) -> Iterator[str]:
    config = model.config
    types = {tensor.name: tensor.data_type for tensor in config.input}
    for warm_up in config.model_warmup:
        where = f"warm-up `{warm_up.name}`"
        if not 1 <= warm_up.batch_size <= max(config.max_batch_size, 1):
            yield f"{where}: batch {warm_up.batch_size} is not within 1 to {config.max_batch_size}"
        if set(warm_up.inputs) != set(types):
            yield f"{where} has inputs {sorted(warm_up.inputs)}, the model {sorted(types)}"
        for name, data in warm_up.inputs.items():
            dtype = data_type_name(data.data_type)
            if data.data_type != types.get(name, data.data_type):
                yield f"{where}: `{name}` is {dtype}, not {data_type_name(types[name])}"
            if any(dim < 1 for dim in data.dims):
                yield f"{where}: `{name}` has a dimension that is not fixed"
                continue
            source = data.WhichOneof("input_data_type")
            if source is None:
                yield f"{where}: `{name}` has no data"
            if source == "input_data_file":
                yield from _warm_up_file(model, where, data, dtype)


def _warm_up_file(model: Model, where: str, data: Any, dtype: str) -> Iterator[str]:
    path = model.folder / WARM_UP_FOLDER / data.input_data_file
    if not path.is_file():
        yield f"{where}: `{WARM_UP_FOLDER}/{data.input_data_file}` is missing"
        return
    needed = _ITEM_BYTES.get(dtype, 0)
    for dim in data.dims:
        needed *= dim
    if path.stat().st_size < needed:
        yield f"{where}: `{path.name}` has {path.stat().st_size} bytes, and {needed} are needed"


# --- ensembles ------------------------------------------------------------------------------


def _ensemble(model: Model, _models: Repository) -> Iterator[str]:
    config = model.config
    if config.platform != _ENSEMBLE:
        return
    for name, is_there in (
        ("instance_group", bool(config.instance_group)),
        ("optimization", config.HasField("optimization")),
        ("model_warmup", bool(config.model_warmup)),
    ):
        if is_there:
            yield f"an ensemble has no `{name}`"
    steps = config.ensemble_scheduling.step
    if not steps:
        yield "`ensemble_scheduling` has no `step`"
    for number, step in enumerate(steps):
        for name, is_there in (
            ("model_name", bool(step.model_name)),
            ("input_map", bool(step.input_map)),
            ("output_map", bool(step.output_map)),
        ):
            if not is_there:
                yield f"step {number} has no `{name}`"
    yield from _flow(config)


def _flow(config: Any) -> Iterator[str]:
    """Every tensor of an ensemble is written once, in an order that ends, and read."""
    steps = config.ensemble_scheduling.step
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    written = [name for step in steps for name in step.output_map.values()]
    read = {name for step in steps for name in step.input_map.values()}
    for name in sorted(inputs - read):
        yield f"input `{name}` is not used by any step"
    for name in sorted({*written, *inputs}):
        if written.count(name) + (name in inputs) > 1:
            yield f"tensor `{name}` is written more than once"
    ready = set(inputs)
    waiting = list(steps)
    while runnable := [step for step in waiting if ready.issuperset(step.input_map.values())]:
        waiting = [step for step in waiting if step not in runnable]
        ready.update(name for step in runnable for name in step.output_map.values())
    for name in sorted(outputs - ready):
        yield f"output `{name}` is not written"
    for name in sorted(read - ready):
        yield f"tensor `{name}` is read, and no step that can run writes it"
    for name in sorted(set(written) - read - outputs):
        yield f"tensor `{name}` is written, and nothing reads it"


def _steps(model: Model, models: Repository) -> Iterator[str]:
    """What the steps of an ensemble say of the models they name."""
    config = model.config
    if config.platform != _ENSEMBLE:
        return
    known = {
        tensor.name: _Known(_signature(tensor, config.max_batch_size), origin)
        for origin, tensors in (("its own input", config.input), ("its own output", config.output))
        for tensor in tensors
    }
    for step in config.ensemble_scheduling.step:
        if step.model_name not in models:
            yield f"a step names model `{step.model_name}`, which is not in the repository"
            continue
        inner = models[step.model_name].config
        if inner.max_batch_size < config.max_batch_size:
            yield (
                f"batches go up to {config.max_batch_size}, and those of `{step.model_name}` only "
                f"to {inner.max_batch_size}"
            )
        for tensor in inner.input:
            if tensor.name not in step.input_map:
                yield f"input `{tensor.name}` of `{step.model_name}` is not mapped"
        targets = list(step.output_map.values())
        for name in sorted({name for name in targets if targets.count(name) > 1}):
            yield f"several outputs of `{step.model_name}` are mapped to `{name}`"
        yield from _mapped("input", step.input_map, inner.input, inner, known)
        yield from _mapped("output", step.output_map, inner.output, inner, known)


@dataclass(frozen=True, slots=True)
class _Known:
    """Type and shape of an ensemble's tensor, and who said so first."""

    signature: tuple[str, tuple[int, ...]]
    origin: str


def _mapped(
    kind: str, mapping: Mapping[str, str], tensors: Any, inner: Any, known: dict[str, _Known]
) -> Iterator[str]:
    """Tensors that a step maps exist, and are of one type and shape wherever they appear."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for name, mapped in sorted(mapping.items()):
        if name not in by_name:
            yield f"model `{inner.name}` has no {kind} `{name}`"
            continue
        dtype, shape = _signature(by_name[name], inner.max_batch_size)
        first = known.setdefault(mapped, _Known((dtype, shape), f"`{inner.name}`"))
        other_dtype, other_shape = first.signature
        if dtype != other_dtype:
            yield f"tensor `{mapped}` is {dtype} for `{inner.name}` and {other_dtype} for {first.origin}"
        elif not _fit(shape, other_shape):
            yield (
                f"tensor `{mapped}` is {list(shape)} for `{inner.name}` and {list(other_shape)} "
                f"for {first.origin}"
            )


def _signature(tensor: Any, max_batch_size: int) -> tuple[str, tuple[int, ...]]:
    dims = tuple(tensor.dims)
    return data_type_name(tensor.data_type), (-1, *dims) if max_batch_size > 0 else dims


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in {a, b} for a, b in zip(one, other, strict=True)
    )


RULES: Final[tuple[Callable[[Model, Repository], Iterator[str]], ...]] = (
    _name,
    _backend,
    _max_batch_size,
    _interface,
    _dynamic_batching,
    _instances,
    _versions,
    _capabilities,
    _engines,
    _warm_ups,
    _ensemble,
    _steps,
)
