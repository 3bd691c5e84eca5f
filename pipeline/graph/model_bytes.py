"""A model file written piece by piece: the bytes that protobuf would write, without two copies of them.

A message is a row of fields, each with its number, its length and its bytes. Fields are written in the
order of their numbers, so what comes before and after the weights is left to protobuf, and weights
are written between, one at a time.
Source of the format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

import onnx
import onnx_ir as ir

from pipeline.graph.large_weights import release_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

STREAMED_BYTES: Final = 1 << 20
"""Weights of this size are written one at a time; smaller ones all at once."""

_GRAPH: Final = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER: Final = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA: Final = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_LENGTH_DELIMITED: Final = 2


def write_model(model: ir.Model, file: BinaryIO) -> None:
    """Write a model with all of its weights inside.

    Args:
        model: Of less than 2 GiB.
        file: Opened for writing.
    """
    large: dict[str, ir.TensorProtocol] = {}
    values = list(model.graph.initializers.values())
    kept = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, kept, strict=True):
            if value.name and tensor is not None and _is_streamed(tensor):
                large[value.name] = tensor
                value.const_value = _hollow(tensor, value.name)
        _take_inside(model)
        proto = ir.serde.serialize_model(model)
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor  # the model is as it was
    _write(proto, large, file)


def _take_inside(model: ir.Model) -> None:
    """Load small weights that are outside, in branches and loops too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                array = tensor.numpy().copy()
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
                release_weight(tensor)


def _is_streamed(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING or tensor.metadata_props:
        return False
    if tensor.nbytes < STREAMED_BYTES:
        return False
    if isinstance(tensor, ir.TensorProtoTensor):  # which is written as it was read
        return tensor.raw.HasField("raw_data") and not tensor.raw.HasField("segment")
    return True


def _hollow(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The tensor as a message without its numbers, which `onnx_ir` passes on as it is."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    return ir.TensorProtoTensor(proto)


def _write(proto: onnx.ModelProto, large: dict[str, ir.TensorProtocol], file: BinaryIO) -> None:
    graph = proto.graph
    before = _part(graph, lambda number: number < _INITIALIZER)
    after = _part(graph, lambda number: number > _INITIALIZER)
    heads = []
    for message in graph.initializer:
        tensor = large.get(message.name)
        if tensor is None:
            heads.append((message.SerializeToString(deterministic=True), b"", 0))
            continue
        head = _part(message, lambda number: number < _RAW_DATA)
        tail = _part(message, lambda number: number > _RAW_DATA)
        head += field_tag(_RAW_DATA, tensor.nbytes)
        heads.append((head, tail, tensor.nbytes))
    lengths = [len(head) + size + len(tail) for head, tail, size in heads]
    tags = [field_tag(_INITIALIZER, length) for length in lengths]
    total = len(before) + sum(map(len, tags)) + sum(lengths) + len(after)
    file.write(_part(proto, lambda number: number < _GRAPH) + field_tag(_GRAPH, total) + before)
    for message, tag, (head, tail, size) in zip(graph.initializer, tags, heads, strict=True):
        file.write(tag + head)
        if size:
            _write_numbers(large[message.name], size, file)
        file.write(tail)
    file.write(after + _part(proto, lambda number: number > _GRAPH))


def _write_numbers(tensor: ir.TensorProtocol, size: int, file: BinaryIO) -> None:
    start = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    release_weight(tensor)
    if file.tell() - start != size:
        raise ValueError(f"`{tensor.name}` has {file.tell() - start} bytes, not {size}")


def _part(message: Message, has: Callable[[int], bool]) -> bytes:
    """The fields of a message whose numbers are wanted, as they are written."""
    part: Any = type(message)()
    for field, value in message.ListFields():
        if not has(field.number):
            continue
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif field.message_type is not None:
            getattr(part, field.name).CopyFrom(value)
        else:
            setattr(part, field.name, value)
    written: bytes = part.SerializeToString(deterministic=True)
    return written


def field_tag(number: int, length: int) -> bytes:
    """What stands before a field of a length."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits in a byte, lowest first; the eighth says that more follow."""
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
