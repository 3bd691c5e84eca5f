from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pipeline.engines.header import HEADER_BYTES, read_engine_header
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 200


def _engine(size: int = SIZE, magic: bytes = b"vtrt", mask: int = 0b1000) -> bytes:
    head = struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, size, 1, 7, 1, 116, magic, mask, 0, 0, 100)
    assert len(head) == HEADER_BYTES
    return head + bytes(SIZE - HEADER_BYTES)


def test_a_header_gives_version_targets_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(_engine(mask=0b11001))
    header = read_engine_header(path)
    assert header.version == "1.7.1.116"
    assert header.compute_capabilities == ("sm75", "sm89", "sm120")
    assert (header.size_bytes, header.weights_bytes) == (SIZE, 100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 bytes; the header alone has 64"),
        (_engine()[:63], "has 63 bytes"),
        (_engine()[:-1], "is truncated: 199 bytes, and its header says 200"),
        (_engine() + b"x", "has something after its end"),
        (b"PK\3\4" + _engine()[4:], "is not an engine: it starts with"),
        (_engine()[:28] + b"none" + _engine()[32:], "is not an engine"),
        (_engine(mask=0), "names no compute capability"),
        (_engine(mask=1 << 40), "names compute capabilities that no version has"),
        (_engine()[:63] + b"\xff" + _engine()[64:], "bytes of weights do not fit into 200"),
    ],
)
def test_a_file_that_is_no_whole_engine_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_engine_header(path)
    assert caught.value.where == "model.engine"
    assert "buil" in caught.value.hint


# Bytes that a change of is always seen: magic, layout, size of the file, second magic, and the
# halves of mask and weights that no engine uses. Version and the rest are held by the digest.
GUARDED = (*range(24), *range(28, 32), *range(36, 40), *range(60, 64))


@pytest.mark.parametrize("byte", GUARDED)
def test_a_flipped_bit_of_a_guarded_byte_is_seen(tmp_path: Path, byte: int) -> None:
    path = tmp_path / "model.engine"
    for bit in range(8):
        damaged = bytearray(_engine())
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read_engine_header(path)


def test_of_full_tensorrt_only_the_version_is_known(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(_engine(magic=b"ftrt"))
    header = read_engine_header(path)
    assert (header.kind, header.product, header.version) == ("tensorrt", "TensorRT", "1.7.1.116")
    assert header.compute_capabilities == ()


def test_a_missing_engine_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_engine_header(tmp_path / "model.engine")
