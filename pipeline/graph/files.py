"""ONNX files: read with care, written complete, into empty places only.

Weights lie inside the model file; only above `INLINE_LIMIT_BYTES` do they go to a file of their own
beside it, because protobuf ends at 2 GiB. Nothing is ever written beside an input, and no file that
exists is opened for writing: `onnx.save_model` appends to external data that is already there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from pipeline.errors import ArtifactError, StoreError
from pipeline.stages.base import EXTERNAL_DATA_FILE, INLINE_LIMIT_BYTES, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx_ir as ir

THRESHOLD_BYTES: Final = 1024
"""Tensors smaller than this stay inside the model file, where shape inference can read them."""

PAGE_BYTES: Final = 4096
"""Large weights begin at a multiple of it: what is copied from file to file is then shared, and
not copied, by file systems that can (btrfs, XFS). Source: man 2 copy_file_range, FICLONERANGE."""

_WRITERS: Final = 2
"""Threads that write large weights: half the time of one, and twice a weight's memory."""

_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
"""All keys of an external tensor's entry. Source: onnx/docs/ExternalData.md, onnx 1.23."""


def load_model(path: Path) -> onnx.ModelProto:
    """Read a model with all of its weights into memory.

    Args:
        path: The `.onnx` file; external data is read from its own directory.

    Raises:
        ArtifactError: when the file is missing, is no ONNX model, or its external data is missing,
            too short, or not a plain file in the same directory.
    """
    model = load_graph_only(path)
    _require_safe_external_data(model, path)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as err:
        raise ArtifactError(f"external data cannot be read: {err}", where=path.name) from err
    return model


def load_graph_only(path: Path) -> onnx.ModelProto:
    """Read the model file alone; tensors in external data keep their reference.

    Raises:
        ArtifactError: when the file is missing or is no ONNX model.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise ArtifactError(f"not a readable ONNX file: {err}", where=path.name) from err
    if model.ir_version == 0 or not model.HasField("graph"):
        raise ArtifactError("the file holds no ONNX graph", where=path.name)
    return model


def save_model(
    model: onnx.ModelProto, directory: Path, *, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> Path:
    """Write `model.onnx`, and `model.onnx_data` when the weights do not fit inside.

    The bytes are a pure function of the model. `model` may have its weights moved out of it: do not
    use it afterwards.

    Args:
        model: The model, with all weights in memory.
        directory: Where no model may be yet.
        inline_limit_bytes: Above this many bytes of weights they are stored outside.

    Returns:
        The path of `model.onnx`.

    Raises:
        StoreError: when a file of that name is there already, or the disk is full.
    """
    path, data_path = directory / MODEL_FILE, directory / EXTERNAL_DATA_FILE
    _require_absent(path, data_path)
    weights = sum(len(tensor.raw_data) for tensor in iter_tensors(model))
    if weights > inline_limit_bytes:
        external_data_helper.convert_model_to_external_data(
            model,
            all_tensors_to_one_file=True,
            location=EXTERNAL_DATA_FILE,
            size_threshold=THRESHOLD_BYTES,
        )
        model = external_data_helper.write_external_data_tensors(model, str(directory))
    _write(path, lambda file: file.write(model.SerializeToString(deterministic=True)))
    return path


def load_ir_model(path: Path) -> ir.Model:
    """Read a model as `onnx_ir`, with the same checks as `load_model`.

    Weights in external data stay where they are: they are mapped when they are asked for, and copied
    from file to file when the model is written. The file must last as long as the model.

    Raises:
        ArtifactError: as `load_model`.
    """
    import onnx_ir as ir  # a second, for sympy: not for those who only read a graph

    from pipeline.graph.narrow_weights import join_weights

    proto = load_graph_only(path)
    if proto.functions:  # onnx_ir does not look for external data there
        return ir.serde.deserialize_model(load_model(path))
    _require_safe_external_data(proto, path)
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    join_weights(model)
    return model


def save_ir_model(
    model: ir.Model, directory: Path, *, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> Path:
    """Write an `onnx_ir` model as `save_model` does; large weights are streamed, not copied.

    Raises:
        StoreError: as `save_model`.
    """
    import onnx_ir as ir

    from pipeline.graph.narrow_weights import join_weights, split_weights

    path, data_path = directory / MODEL_FILE, directory / EXTERNAL_DATA_FILE
    _require_absent(path, data_path)
    if weight_bytes(model) > inline_limit_bytes:
        split_weights(model)
        ir.save(
            model,
            path,
            external_data=EXTERNAL_DATA_FILE,
            size_threshold_bytes=THRESHOLD_BYTES,
            max_workers=_WRITERS,
            alignment=PAGE_BYTES,
        )
        join_weights(model)
    else:
        from pipeline.graph.model_bytes import write_model  # it needs onnx_ir

        _write(path, lambda file: write_model(model, file))
    return path


def structure_of(model: ir.Model) -> onnx.ModelProto:
    """A model without the numbers of large weights: those are references that lead nowhere.

    A weight whose numbers are made when they are asked for would be written whole otherwise.
    """
    import onnx_ir as ir

    held: dict[ir.Value, ir.TensorProtocol] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > THRESHOLD_BYTES:
            held[value] = tensor
            value.const_value = ir.ExternalTensor(
                EXTERNAL_DATA_FILE, 0, tensor.nbytes, tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "",
            )  # fmt: skip
    try:
        return ir.serde.serialize_model(model)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the weights of the main graph, which decide whether they go outside."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def iter_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and constants, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _require_safe_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse references out of the model's directory, to links, or past the end of the file.

    onnx 1.23 itself looks at neither unknown keys nor sparse tensors, and its checker passes a file
    that is too short.
    """
    for tensor in iter_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{path.name}: tensor `{tensor.name}`"
        unknown = sorted(set(entries) - _EXTERNAL_KEYS)
        if unknown:
            raise ArtifactError(f"external data has the unknown key `{unknown[0]}`", where=where)
        location = entries.get("location", "")
        if not location or location in {".", ".."} or "/" in location or "\\" in location:
            raise ArtifactError(
                f"external data is at `{location}`, which is no file beside the model", where=where
            )
        file = path.parent / location
        if file.is_symlink() or not file.is_file():
            raise ArtifactError(f"external data `{location}` is not a plain file", where=where)
        offset, length = _extent(entries, where)
        if offset + length > file.stat().st_size:
            raise ArtifactError(
                f"external data `{location}` has {file.stat().st_size} bytes, but the tensor ends "
                f"at {offset + length}",
                where=where,
            )


def _extent(entries: dict[str, str], where: str) -> tuple[int, int]:
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError as err:
        raise ArtifactError("external data has an offset that is no number", where=where) from err
    if offset < 0 or length < 0:
        raise ArtifactError("external data has a negative offset or length", where=where)
    return offset, length


def require_no_model(directory: Path) -> None:
    """Refuse a directory that has a model or weights already.

    Raises:
        StoreError: when it has.
    """
    _require_absent(directory / MODEL_FILE, directory / EXTERNAL_DATA_FILE)


def _require_absent(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise StoreError(f"`{path.name}` exists already; a model is only written once")


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        with path.open("xb") as file:
            write(file)
    except OSError as err:
        path.unlink(missing_ok=True)
        raise StoreError(f"`{path.name}` cannot be written: {err.strerror}") from err
