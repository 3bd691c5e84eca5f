"""What the first 64 bytes of an engine say; read without TensorRT.

Layout, little-endian, as observed with TensorRT-RTX 1.7.1. Bytes 0 to 27 are what `trtexec
--getPlanVersionOnly` reads (NVIDIA/TensorRT samples/common/sampleEngines.cpp), for full TensorRT
too; the rest is not documented and was checked against TensorRT-RTX's builds for every compute
capability. Of an engine of full TensorRT nothing but its version is therefore taken from here.

    0   4s   magic: `vtrt`; full TensorRT writes `ftrt`
    4   u32  0, and at 8 u64 2: of this layout
    16  u64  size of the whole file
    24  4B   version: major, minor, patch, build
    28  4s   `vtrt` again
    32  u64  mask of compute capabilities; see `targets.COMPUTE_CAPABILITIES`
    56  u64  size of the weights; 0 with weight streaming
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.engines.targets import COMPUTE_CAPABILITIES
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

HEADER_BYTES = 64
_MAGIC = b"vtrt"
_FULL_TENSORRT_MAGIC = b"ftrt"
_MASK_BITS = 32
"""More bits than there are GPU generations by a long way; builders of today use 7."""
_LAYOUT = struct.Struct("<4sIQQ4B4sQ16xQ")
_LAYOUT_NUMBERS = (0, 2)
_COPY_AGAIN = "copy the file again, or build the target again"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHeader:
    """The header of a TensorRT-RTX engine, or what is known of one of full TensorRT.

    Attributes:
        kind: Which runtime reads it; neither reads the other's.
        size_bytes: Of the whole file; full TensorRT's header is not known to say it.
        version: Of the package that built it, such as `1.7.1.116`.
        capability_mask: As written; bits without a name are newer GPUs. 0 for full TensorRT.
        compute_capabilities: The names of the mask's bits, ascending; empty for full TensorRT.
        weights_bytes: Of the weights in the file; 0 for full TensorRT.
    """

    kind: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    size_bytes: int
    version: str
    capability_mask: int
    compute_capabilities: tuple[str, ...]
    weights_bytes: int

    @property
    def product(self) -> str:
        """The name of what reads it, for people."""
        return "TensorRT-RTX" if self.kind == "tensorrt-rtx" else "TensorRT"


def read_engine_header(path: Path) -> EngineHeader:
    """Read the header and hold it against the size of the file.

    Raises:
        ArtifactError: when the file is not there, too short, of another kind, or truncated.
    """
    where = path.name
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise ArtifactError(f"the engine cannot be read: {error.strerror}", where=where) from error
    if len(head) < HEADER_BYTES:
        raise ArtifactError(
            f"the engine has {len(head)} bytes; the header alone has {HEADER_BYTES}",
            where=where,
            hint=_COPY_AGAIN,
        )
    return _parse(head, size, where)


def _parse(head: bytes, found_bytes: int, where: str) -> EngineHeader:
    magic, first, second, size, *parts, second_magic, mask, weights = _LAYOUT.unpack(head)
    version = ".".join(map(str, parts))
    if magic == _FULL_TENSORRT_MAGIC and second_magic != _MAGIC:
        return EngineHeader(
            kind="tensorrt",
            size_bytes=found_bytes,
            version=version,
            capability_mask=0,
            compute_capabilities=(),
            weights_bytes=0,
        )
    if magic != _MAGIC or second_magic != _MAGIC:
        raise ArtifactError(
            f"this is not an engine: it starts with {magic!r} and has {second_magic!r} at 28, and "
            f"TensorRT-RTX writes {_MAGIC!r}",
            where=where,
            hint="name a file that TensorRT or TensorRT-RTX wrote; a damaged one is built again",
        )
    if (first, second) != _LAYOUT_NUMBERS:
        raise ArtifactError(
            f"the engine's header is of another layout, {first} and {second}, than the one that is "
            f"known, {_LAYOUT_NUMBERS[0]} and {_LAYOUT_NUMBERS[1]}",
            where=where,
            hint="it is damaged, or of a newer TensorRT-RTX than this version of convert knows",
        )
    if size != found_bytes:
        kind = "is truncated" if found_bytes < size else "has something after its end"
        raise ArtifactError(
            f"the engine {kind}: {found_bytes} bytes, and its header says {size}",
            where=where,
            hint=_COPY_AGAIN,
        )
    damage = _damage(size, mask, weights)
    if damage:
        raise ArtifactError(
            f"the engine's header is damaged: {damage}",
            where=where,
            hint="the file was changed after it was built: build the target again",
        )
    return EngineHeader(
        size_bytes=size,
        version=version,
        capability_mask=mask,
        compute_capabilities=tuple(
            name for name, target in COMPUTE_CAPABILITIES.items() if mask >> target.mask_bit & 1
        ),
        weights_bytes=weights,
    )


def _damage(size: int, mask: int, weights: int) -> str:
    """What cannot be in a header that a builder wrote; empty when all may be."""
    if weights > size:
        return f"{weights} bytes of weights do not fit into {size}"
    if mask == 0:
        return "it names no compute capability"
    if mask >> _MASK_BITS:
        return f"mask {mask:#x} names compute capabilities that no version has"
    return ""
