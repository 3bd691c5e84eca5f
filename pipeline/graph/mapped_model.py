"""A model file read without its weights: they stay where they are in it, and are mapped when asked for.

protobuf reads a whole file into memory and then copies what lies in it. Of a model with large weights
inside, only what is around them is read here; the counterpart of `pipeline.graph.model_bytes`.
Source of the format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from pipeline.errors import ArtifactError
from pipeline.graph.files import load_ir_model
from pipeline.graph.model_bytes import STREAMED_BYTES, field_tag
from pipeline.stages.base import EXTERNAL_DATA_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GRAPH: Final = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER: Final = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA: Final = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10

_Field = tuple[int, int, int, int]
"""Number; where it begins with its tag, where its content begins and where it ends."""


def load_mapped_model(path: Path, *, smallest_bytes: int = STREAMED_BYTES) -> ir.Model:
    """Read a model as `pipeline.graph.files.load_ir_model` does, and leave weights that are inside there.

    The file must last as long as the model.

    Args:
        path: The `.onnx` file.
        smallest_bytes: Weights of the main graph from this size on are mapped; others are read.

    Raises:
        ArtifactError: when the file is missing or is no ONNX model.
    """
    if (path.parent / EXTERNAL_DATA_FILE).exists():
        return load_ir_model(path)
    places: dict[str, tuple[int, int]] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            proto = onnx.ModelProto.FromString(_without(content, places, smallest_bytes))
    except (OSError, ValueError, DecodeError) as err:
        raise ArtifactError(f"not a readable ONNX file: {err}", where=path.name) from err
    if proto.ir_version == 0 or not proto.HasField("graph"):
        raise ArtifactError("the file holds no ONNX graph", where=path.name)
    if proto.functions:  # the numbers of weights that only they use are not looked for
        return load_ir_model(path)
    model = ir.serde.deserialize_model(proto)
    for name, (offset, length) in places.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            path.name, offset, length, ir.DataType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=path.parent,
            doc_string=tensor.doc_string,
        )  # fmt: skip
    return model


def _without(content: mmap.mmap, places: dict[str, tuple[int, int]], smallest_bytes: int) -> bytes:
    """The model without its large weights; `places` gets where the numbers of each are."""
    parts = []
    for number, begin, start, end in _fields(content, 0, len(content)):
        if number != _GRAPH:
            parts.append(content[begin:end])
            continue
        graph = []
        for inner, first, inside, last in _fields(content, start, end):
            is_large = inner == _INITIALIZER and last - inside >= smallest_bytes
            hollow = _hollow(content, inside, last, places, smallest_bytes) if is_large else None
            graph.append(content[first:last] if hollow is None else hollow)
        joined = b"".join(graph)
        parts += (field_tag(_GRAPH, len(joined)), joined)
    return b"".join(parts)


def _hollow(
    content: mmap.mmap,
    start: int,
    end: int,
    places: dict[str, tuple[int, int]],
    smallest_bytes: int,
) -> bytes | None:
    """An initializer as a field without its numbers; None when they lie in another form."""
    fields = tuple(_fields(content, start, end))
    large = [field for field in fields if field[0] == _RAW_DATA]
    if len(large) != 1 or large[0][3] - large[0][2] < smallest_bytes:
        return None
    head = b"".join(
        content[begin:last] for number, begin, _, last in fields if number != _RAW_DATA
    )
    name = onnx.TensorProto.FromString(head).name
    if not name or name in places:
        raise ValueError(f"an initializer named {name!r} is there twice, or has no name")
    places[name] = (large[0][2], large[0][3] - large[0][2])
    return field_tag(_INITIALIZER, len(head)) + head


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """The fields of a message that lies between two places.

    Raises:
        ValueError: when it is none.
    """
    place = start
    while place < end:
        begin = place
        key, place = _varint(content, place, end)
        kind = key & 7
        if kind == _VARINT:
            first = place
            _, place = _varint(content, place, end)
        elif kind == _LENGTH_DELIMITED:
            length, first = _varint(content, place, end)
            place = first + length
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES}:
            first, place = place, place + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"a field of kind {kind}, which protobuf does not have")
        if place > end:
            raise ValueError("the file is cut off")
        yield key >> 3, begin, first, place


def _varint(content: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for digit in range(_LONGEST_VARINT):
        if place >= end:
            break
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << (7 * digit)
        if byte < 0x80:
            return number, place
    raise ValueError("the file is cut off, or no protobuf message")
