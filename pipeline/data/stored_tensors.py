"""Weights of a checkpoint where they lie: tensors of safetensors files that are read a piece at a time.

Nothing is mapped, so pages that were read do not count as memory of this process afterwards.
Source of the format: https://huggingface.co/docs/safetensors (8 bytes of length, a header in JSON,
the tensors).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

ITEM_BYTES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
"""safetensors' names of types that float32 holds exactly -> bytes of a number."""

BLOCK: Final = 1 << 21
"""Numbers that are read at a time."""

_WIDTH: Final = 4
_LENGTH_BYTES: Final = 8
_HEADER_LIMIT: Final = 100_000_000
"""Bytes of a header; the library's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: Which one.
        offset: Where in the file its first byte is.
        dtype: safetensors' name of its type; only those of `ITEM_BYTES` can be read.
        shape: Of the tensor.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def part(self, start: int, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor that begins at number `start` of this one and lies there without gaps."""
        return replace(self, offset=self.offset + start * ITEM_BYTES[self.dtype], shape=shape)

    def read(self, into: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """All of it, in its shape; the values are exact.

        Args:
            into: As many numbers in one row, which are written over; new ones by default.

        Raises:
            ArtifactError: when the file has become shorter, or is gone.
        """
        result = np.empty(self.size, np.float32) if into is None else into
        self._fill(result, 0)
        return result.reshape(self.shape)

    def blocks(self, numbers: int = BLOCK) -> Iterator[NDArray[np.float32]]:
        """The numbers in their order, `numbers` at a time; each block is gone when the next is asked for.

        Raises:
            ArtifactError: as `read`.
        """
        room = np.empty(min(numbers, self.size), np.float32)
        for start in range(0, self.size, numbers):
            block = room[: self.size - start]
            self._fill(block, start)
            yield block

    def _fill(self, result: NDArray[np.float32], start: int) -> None:
        """Write the numbers from `start` on over an array."""
        width = ITEM_BYTES[self.dtype]
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + start * width)
                if width == _WIDTH:
                    _read_exactly(file, result.view(np.uint8))
                    return
                stored = np.empty(min(BLOCK, result.size), "<u2")
                for begin in range(0, result.size, BLOCK):
                    part = stored[: result.size - begin]
                    _read_exactly(file, part.view(np.uint8))
                    _widen(part, self.dtype, result[begin : begin + part.size])
        except OSError as err:
            reason = err.strerror or str(err)
            raise ArtifactError(f"cannot be read: {reason}", where=self.file.name) from err


def _read_exactly(file: Any, room: NDArray[np.uint8]) -> None:
    view, done = room.data, 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise OSError(0, "the file is shorter than its header says")
        done += count


def _widen(stored: NDArray[np.uint16], dtype: str, result: NDArray[np.float32]) -> None:
    if dtype == "BF16":  # the upper half of a float32
        np.left_shift(stored, np.uint32(16), out=result.view(np.uint32))
    else:
        np.copyto(result, stored.view("<f2"))


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one safetensors file, whatever the types.

    Raises:
        ArtifactError: when it is no such file.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if length > _HEADER_LIMIT:
                raise ArtifactError("the header is too long", where=file.name)
            header = json.loads(opened.read(length))
        return {
            name: StoredTensor(
                file=file,
                offset=_LENGTH_BYTES + length + entry["data_offsets"][0],
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        raise ArtifactError(f"not a readable safetensors file: {err}", where=file.name) from err
