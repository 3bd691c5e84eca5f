"""An engine as an ONNX model: one node that ONNX Runtime's own provider loads it through.

The node is `com.microsoft::EPContext`. Attributes are those that ONNX Runtime's TensorRT providers
write and read themselves: onnxruntime/core/providers/nv_tensorrt_rtx/onnx_ctx_model_helper.cc
(CreateCtxNode, GetEpContextFromGraph, ValidateEPCtxNode), ONNX Runtime 1.23 and later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import onnx
from onnx import TensorProto, helper

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROVIDERS: Final = {
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Runtime -> the provider of ONNX Runtime that loads its engines."""
_DOMAIN: Final = "com.microsoft"
_IR_VERSION: Final = 10
_OPSET: Final = 20
_PORTABLE: Final = "80+"
"""How the providers name an engine for all GPUs from Ampere on."""


_NUMPY_NAMES: Final = {"float32": "FLOAT", "float64": "DOUBLE"}
"""Element types that numpy and ONNX name differently."""


class EngineTensor(Protocol):
    """An input or output of an engine, such as `facts_file.TensorFacts`."""

    @property
    def name(self) -> str:
        """Of the binding."""

    @property
    def dtype(self) -> str:
        """The element type as ONNX names it in lower case, or as numpy does."""

    @property
    def dims(self) -> tuple[int | str | None, ...]:
        """A size, a name, or None for each axis."""


def write_ep_context(
    engine: Path,
    inputs: Sequence[EngineTensor],
    outputs: Sequence[EngineTensor],
    path: Path,
    *,
    runtime: str = "tensorrt-rtx",
    version: str = "",
    target: str = "",
) -> None:
    """Write the model that stands for an engine.

    Args:
        engine: The file, in the directory of `path` or below it; it stays where it is.
        inputs: What the engine expects, in its order.
        outputs: What it gives, in its order.
        path: The model to write.
        runtime: Whose engine it is, of `PROVIDERS`.
        version: Of the TensorRT that built it, such as `1.7.1.116`.
        target: What it was built for, such as `sm89` or `portable`.

    Raises:
        ArtifactError: the engine is elsewhere, or has a name or an element type that ONNX Runtime
            does not take.
    """
    try:
        location = engine.resolve().relative_to(path.parent.resolve()).as_posix()
    except ValueError as error:
        raise ArtifactError(
            f"the engine {engine.name} is not in the directory of {path.name}, and ONNX Runtime "
            "loads it from nowhere else",
            where=str(path),
        ) from error
    if ".." in location:  # the provider looks for these two characters anywhere in the path
        raise ArtifactError(
            f"ONNX Runtime takes no engine with `..` in its path: {location}", where=str(path)
        )
    attributes: dict[str, int | str] = {
        "embed_mode": 0,
        "ep_cache_context": location,
        "ep_sdk_version": _sdk_version(version),
        "hardware_architecture": _architecture(target),
        "main_context": 0,  # as the provider has it: every node has an engine of its own
        "onnx_model_filename": "model.onnx",
        "partition_name": engine.stem,
        "source": PROVIDERS[runtime],
    }
    node = helper.make_node(
        "EPContext",
        [tensor.name for tensor in inputs],
        [tensor.name for tensor in outputs],
        name=engine.stem,
        domain=_DOMAIN,
    )
    node.attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items() if value != ""
    )
    graph = helper.make_graph(
        [node],
        "engine",
        [_value(tensor, path) for tensor in inputs],
        [_value(tensor, path) for tensor in outputs],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_DOMAIN, 1)],
        producer_name="convert",
    )
    path.write_bytes(model.SerializeToString(deterministic=True))


def require_ep_context(path: Path, runtime: str = "tensorrt-rtx") -> None:
    """Have ONNX Runtime read the model as far as it can without a GPU.

    Its CPU answers that no provider here loads a context of that name, and says so only once
    the model, the node and the node's `source` are read.

    Raises:
        ArtifactError: it answers anything else.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except state.NotImplemented as error:
        if PROVIDERS[runtime] in str(error):
            return
        raise ArtifactError(f"ONNX Runtime does not know it: {error}", where=path.name) from error
    except Exception as error:  # its errors have no base of their own
        raise ArtifactError(f"ONNX Runtime cannot read it: {error}", where=path.name) from error
    raise ArtifactError("ONNX Runtime runs it on the CPU, so it is no engine", where=path.name)


def _value(tensor: EngineTensor, path: Path) -> onnx.ValueInfoProto:
    try:
        onnx_name = _NUMPY_NAMES.get(tensor.dtype, tensor.dtype.upper())
        dtype = TensorProto.DataType.Value(onnx_name)
    except ValueError as error:
        raise ArtifactError(
            f"`{tensor.name}` is {tensor.dtype}, which ONNX does not have", where=path.name
        ) from error
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.dims))


def _sdk_version(version: str) -> str:
    """`1.7.1.116` as TensorRT counts, 10701: major * 10000 + minor * 100 + patch."""
    parts = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    if len(parts) < 3:
        return ""
    return str(parts[0] * 10000 + parts[1] * 100 + parts[2])


def _architecture(target: str) -> str:
    return _PORTABLE if target == "portable" else target.removeprefix("sm")
