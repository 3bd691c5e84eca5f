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
        (_engine(magic=b"ftrt"), "an engine of full TensorRT"),
        (b"PK\3\4" + _engine()[4:], "is not a TensorRT-RTX engine: it starts with"),
        (_engine()[:28] + b"none" + _engine()[32:], "is not a TensorRT-RTX engine"),
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


def test_a_missing_engine_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_engine_header(tmp_path / "model.engine")
