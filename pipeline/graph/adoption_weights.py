"""External data of a foreign graph: every entry is looked at before a byte is read, and none is trusted.

Small models get their weights inside; of large ones the bytes go from file to file, and never are all of
them in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from onnx import TensorProto

from pipeline.candidates.names import quoted
from pipeline.errors import ArtifactError, StoreError
from pipeline.graph.files import PAGE_BYTES, THRESHOLD_BYTES, iter_tensors
from pipeline.graph.inspect import element_bits
from pipeline.stages.base import EXTERNAL_DATA_FILE, INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx

_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
"""All keys of an external tensor's entry. Source: onnx/docs/ExternalData.md, onnx 1.23."""
_CHUNK_BYTES: Final = 1 << 23


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's bytes are: `length` of them from `offset` on in `file`."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class MovedWeights:
    """Bytes that are still to be copied behind one another: each place, and where it goes."""

    places: dict[_Place, int]

    def write(self, directory: Path) -> None:
        """Write `model.onnx_data` beside the graph that was changed; nothing when there are none.

        Raises:
            StoreError: when it is there already, or the disk is full.
        """
        if not self.places:
            return
        path = directory / EXTERNAL_DATA_FILE
        try:
            with path.open("xb") as made:
                for place, start in self.places.items():
                    made.seek(start)
                    with place.file.open("rb") as given:
                        given.seek(place.offset)
                        left = place.length
                        while left and (piece := given.read(min(_CHUNK_BYTES, left))):
                            left -= made.write(piece)
        except OSError as err:
            raise StoreError(
                f"weights cannot be written: {err.strerror}", where=path.name
            ) from err


def move_weights(
    model: onnx.ModelProto, folder: Path, *, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> MovedWeights:
    """Read external data into a model, or, above a limit, let it point to one file that is to be written.

    Args:
        model: Is changed.
        folder: Holds the files; each entry may be a link that was looked at before.
        inline_limit_bytes: Above this many bytes of weights they stay outside.

    Raises:
        ArtifactError: as `take_weights_in`.
    """
    found = list(_external(model, folder))
    if sum(place.length for _, place in found) <= inline_limit_bytes:
        take_weights_in(model, folder)
        return MovedWeights({})
    places: dict[_Place, int] = {}
    end = 0
    for tensor, place in found:
        if place.length < THRESHOLD_BYTES:
            _put_in(tensor, place)
            continue
        if place not in places:
            places[place] = end
            end += -(-place.length // PAGE_BYTES) * PAGE_BYTES
        del tensor.external_data[:]
        entries = (EXTERNAL_DATA_FILE, places[place], place.length)
        for key, value in zip(("location", "offset", "length"), entries, strict=True):
            tensor.external_data.add(key=key, value=str(value))
    return MovedWeights(places)


def take_weights_in(model: onnx.ModelProto, folder: Path) -> None:
    """Read all external data of a model into it.

    Args:
        model: Is changed.
        folder: Holds the files; each entry may be a link that was looked at before.

    Raises:
        ArtifactError: an entry has unknown keys, names no file of the folder, or reaches past the
            end of one; or its length is not that of the tensor.
    """
    for tensor, place in _external(model, folder):
        _put_in(tensor, place)


def _put_in(tensor: TensorProto, place: _Place) -> None:
    with place.file.open("rb") as file:
        file.seek(place.offset)
        tensor.raw_data = file.read(place.length)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def _external(model: onnx.ModelProto, folder: Path) -> Iterator[tuple[TensorProto, _Place]]:
    """Every tensor with external data, and where its bytes are."""
    for tensor in iter_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = f"tensor {quoted(tensor.name)}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        unknown = sorted(set(entries) - _EXTERNAL_KEYS)
        if unknown:
            raise ArtifactError(
                f"external data has the unknown key {quoted(unknown[0])}", where=where
            )
        location = entries.get("location", "")
        if location in {"", ".", ".."} or any(mark in location for mark in ("/", "\\", "\0")):
            raise ArtifactError(
                f"external data is at {quoted(location)}, which is no file beside the model",
                where=where,
            )
        yield tensor, _place(folder / location, tensor, entries, where)


def _place(path: Path, tensor: TensorProto, entries: Mapping[str, str], where: str) -> _Place:
    bits = element_bits(TensorProto.DataType.Name(tensor.data_type))
    wanted = (prod(tensor.dims) * bits + 7) // 8
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", "0")) or wanted
    except ValueError as err:
        raise ArtifactError("external data has an offset that is no number", where=where) from err
    if not path.is_file():
        raise ArtifactError(
            f"the file {quoted(path.name)} with its numbers is missing", where=where
        )
    size = path.stat().st_size
    if offset < 0 or length != wanted or offset + length > size:
        raise ArtifactError(
            f"its {wanted:,} bytes are said to be at {offset:,} to {offset + length:,} of "
            f"{quoted(path.name)}, which has {size:,}",
            where=where,
            hint="the file is cut off, or belongs to another model",
        )
    return _Place(path, offset, length)
