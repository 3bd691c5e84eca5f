"""The `config.pbtxt` of each kind of model, as plain data.

Keys and their meaning: triton-inference-server/common protobuf/model_config.proto, and the READMEs
of onnxruntime_backend, tensorrt_backend and python_backend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from pipeline.bundle.triton.text import Word, map_entries
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.bundle.triton.text import Message, Value

DTYPES: Final = {
    "bool": "TYPE_BOOL",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float": "TYPE_FP32",
    "float32": "TYPE_FP32",
    "double": "TYPE_FP64",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
"""Name of an element type, ONNX's or numpy's -> Triton's."""

Kind = Literal["KIND_CPU", "KIND_GPU"]
NO_OPTIMIZATIONS: Final = 2
"""`optimization.graph.level` that has ONNX Runtime run a graph as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output.

    Attributes:
        name: Its name.
        dtype: Triton's name of the element type.
        dims: Without the batch where the model batches; -1 for what may be of any size.
        axes: Name of each of `dims` that has one, else empty.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests are put together.

    Attributes:
        max_batch: Largest batch; 0 when the first axis is no batch.
        preferred: Batch sizes that the server should aim at.
        max_delay_us: How long the first request waits for others, microseconds.
    """

    max_batch: int
    preferred: tuple[int, ...] = ()
    max_delay_us: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """One request before the first real one.

    Attributes:
        name: For the server's log.
        batch: How many samples.
        sizes: Name of an axis -> its size.
    """

    name: str
    batch: int
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model of one of the backends that run graphs or engines.

    Attributes:
        engines: Compute capability such as `8.9` -> file; for TensorRT.
        profiles: Numbers of the optimization profiles; for TensorRT.
        parameters: The backend's own.
        accelerator: The provider of ONNX Runtime on a GPU, such as `tensorrt`; empty on the CPU.
        accelerator_options: The provider's own.
        runs_as_written: ONNX Runtime's graph optimisations stay off.
    """

    name: str
    backend: Literal["onnxruntime", "tensorrt"]
    kind: Kind
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: Batching
    warm_ups: tuple[WarmUp, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)
    profiles: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    accelerator: str = ""
    accelerator_options: Mapping[str, str] = field(default_factory=dict)
    runs_as_written: bool = False


def dtype_name(onnx_dtype: str, *, where: str) -> str:
    """Triton's name of an element type.

    Raises:
        ArtifactError: it has none.
    """
    if onnx_dtype not in DTYPES:
        raise ArtifactError(f"Triton has no element type for {onnx_dtype}", where=where)
    return DTYPES[onnx_dtype]


def model_config(spec: ModelSpec) -> Message:
    """The configuration of a model that runs a graph or an engine."""
    group: dict[str, Value] = {"kind": Word(spec.kind), "count": 1}
    if spec.profiles > 1:
        # Without the list the server uses the first profile alone.
        group["profile"] = [str(number) for number in range(spec.profiles)]
    config: dict[str, Value] = {
        "name": spec.name,
        "backend": spec.backend,
        "max_batch_size": spec.batching.max_batch,
        "input": [_tensor(tensor) for tensor in spec.inputs],
        "output": [_tensor(tensor) for tensor in spec.outputs],
        "instance_group": [group],
    }
    if spec.batching.max_batch > 1:
        config["dynamic_batching"] = _dynamic_batching(spec.batching)
    optimization: dict[str, Value] = {}
    if spec.runs_as_written:
        optimization["graph"] = {"level": NO_OPTIMIZATIONS}
    if spec.accelerator:
        accelerator: dict[str, Value] = {"name": spec.accelerator}
        if spec.accelerator_options:
            accelerator["parameters"] = map_entries(dict(sorted(spec.accelerator_options.items())))
        optimization["execution_accelerators"] = {"gpu_execution_accelerator": [accelerator]}
    if optimization:
        config["optimization"] = optimization
    if spec.engines:
        config["cc_model_filenames"] = map_entries(dict(sorted(spec.engines.items())))
    if spec.parameters:
        config["parameters"] = map_entries(
            {name: {"string_value": value} for name, value in sorted(spec.parameters.items())}
        )
    if spec.warm_ups:
        config["model_warmup"] = [_warm_up(spec, warm_up) for warm_up in spec.warm_ups]
    return config


def tokenizer_config(
    name: str, texts: Sequence[str], outputs: Sequence[str], batching: Batching
) -> Message:
    """The configuration of the tokenizer: texts to int64 (batch, sequence)."""
    config: dict[str, Value] = {
        "name": name,
        "backend": "python",
        "max_batch_size": batching.max_batch,
        "input": [_text(text) for text in texts],
        "output": [
            {"name": output, "data_type": Word("TYPE_INT64"), "dims": [-1]} for output in outputs
        ],
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
    }
    if batching.max_batch > 1:
        config["dynamic_batching"] = _dynamic_batching(batching)
    return config


def ensemble_config(
    name: str, tokenizer: str, model: ModelSpec, texts: Sequence[str], tokens: Sequence[str]
) -> Message:
    """Text to the outputs of a model: its tokenizer, then the model."""
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": model.batching.max_batch,
        "input": [_text(text) for text in texts],
        "output": [_tensor(tensor) for tensor in model.outputs],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": tokenizer,
                    "model_version": -1,
                    "input_map": map_entries({text: text for text in texts}),
                    "output_map": map_entries({token: f"_{token}" for token in tokens}),
                },
                {
                    "model_name": model.name,
                    "model_version": -1,
                    "input_map": map_entries({token: f"_{token}" for token in tokens}),
                    "output_map": map_entries({t.name: t.name for t in model.outputs}),
                },
            ]
        },
    }


def warm_up_shape(tensor: Tensor, warm_up: WarmUp) -> tuple[int, ...]:
    """The shape of one sample of an input in a warm-up request.

    Raises:
        ArtifactError: an axis of any size has no name that the recipe gives a size.
    """
    shape = []
    for dim, axis in zip(tensor.dims, tensor.axes, strict=True):
        if dim == -1 and axis not in warm_up.sizes:
            raise ArtifactError(f"axis `{axis or '?'}` of input `{tensor.name}` has no size")
        shape.append(warm_up.sizes[axis] if dim == -1 else dim)
    return tuple(shape)


def warm_up_file(tensor: Tensor, warm_up: WarmUp) -> str:
    """The file with an input's ones, in the model's folder `warmup`; empty: it is all zeros.

    A mask of zeros would leave softmax nothing to look at. Token 0 is in every vocabulary.
    """
    if tensor.name != "attention_mask":
        return ""
    return f"{tensor.name}-{'x'.join(map(str, warm_up_shape(tensor, warm_up)))}"


def _warm_up(spec: ModelSpec, warm_up: WarmUp) -> Message:
    inputs: dict[str, Value] = {}
    for tensor in spec.inputs:
        data: dict[str, Value] = {
            "data_type": Word(tensor.dtype),
            "dims": list(warm_up_shape(tensor, warm_up)),
        }
        file = warm_up_file(tensor, warm_up)
        data |= {"input_data_file": file} if file else {"zero_data": True}
        inputs[tensor.name] = data
    return {"name": warm_up.name, "batch_size": warm_up.batch, "inputs": map_entries(inputs)}


def _tensor(tensor: Tensor) -> Message:
    return {"name": tensor.name, "data_type": Word(tensor.dtype), "dims": list(tensor.dims)}


def _text(name: str) -> Message:
    return {"name": name, "data_type": Word("TYPE_STRING"), "dims": [1]}


def _dynamic_batching(batching: Batching) -> Message:
    config: dict[str, Value] = {}
    if batching.preferred:
        config["preferred_batch_size"] = list(batching.preferred)
    config["max_queue_delay_microseconds"] = batching.max_delay_us
    return config
