"""What the first 64 bytes of a TensorRT-RTX engine say; read without TensorRT.

Layout, little-endian, as observed with TensorRT-RTX 1.7.1. Bytes 0 to 27 are what `trtexec
--getPlanVersionOnly` reads (NVIDIA/TensorRT samples/common/sampleEngines.cpp); the rest is not
documented and was checked against builds for every compute capability.

    0   4s   magic: `vtrt`; full TensorRT writes `ftrt`
    16  u64  size of the whole file
    24  4B   version: major, minor, patch, build
    28  4s   `vtrt` again
    32  u64  mask of compute capabilities; see `targets.COMPUTE_CAPABILITIES`
    56  u64  size of the weights; 0 with weight streaming
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.engines.targets import COMPUTE_CAPABILITIES
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

HEADER_BYTES = 64
_MAGIC = b"vtrt"
_FULL_TENSORRT_MAGIC = b"ftrt"
_LAYOUT = struct.Struct("<4s12xQ4B4sQ16xQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHeader:
    """The header of a TensorRT-RTX engine.

    Attributes:
        size_bytes: Of the whole file.
        version: Of the TensorRT-RTX that built it, such as `1.7.1.116`.
        capability_mask: As written; bits without a name are newer GPUs.
        compute_capabilities: The names of the mask's bits, ascending.
        weights_bytes: Of the weights in the file.
    """

    size_bytes: int
    version: str
    capability_mask: int
    compute_capabilities: tuple[str, ...]
    weights_bytes: int


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
            f"the engine has {len(head)} bytes; the header alone has {HEADER_BYTES}", where=where
        )
    header = _parse(head, where)
    if header.size_bytes != size:
        kind = "is truncated" if size < header.size_bytes else "has something after its end"
        raise ArtifactError(
            f"the engine {kind}: {size} bytes, and its header says {header.size_bytes}",
            where=where,
        )
    return header


def _parse(head: bytes, where: str) -> EngineHeader:
    magic, size, *version, second_magic, mask, weights = _LAYOUT.unpack(head)
    if magic == _FULL_TENSORRT_MAGIC:
        raise ArtifactError(
            "this is an engine of full TensorRT, not of TensorRT-RTX",
            where=where,
            hint="only TensorRT of the version that built it can read it",
        )
    if magic != _MAGIC or second_magic != _MAGIC:
        raise ArtifactError(
            f"this is not a TensorRT-RTX engine: it starts with {magic!r}, not {_MAGIC!r}",
            where=where,
        )
    return EngineHeader(
        size_bytes=size,
        version=".".join(str(part) for part in version),
        capability_mask=mask,
        compute_capabilities=tuple(
            name for name, target in COMPUTE_CAPABILITIES.items() if mask >> target.mask_bit & 1
        ),
        weights_bytes=weights,
    )
