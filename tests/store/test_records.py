from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import StoreError
from pipeline.hashing import tagged_digest
from pipeline.store.records import KEY_TAG, StageRecord, decode_record, encode_record

PREIMAGE = {"stage": "export", "version": 1, "inputs": ["0" * 64]}
RECORD = StageRecord(
    key=tagged_digest(KEY_TAG, PREIMAGE),
    preimage=PREIMAGE,
    tree="1" * 64,
    facts={"layers": 6, "cosine": 0.1 + 0.2},
    wall_time_s=1.25,
    peak_rss_mib=100.0,
    created_at="2026-01-31T12:00:00Z",
)


def test_a_record_is_read_back_exactly() -> None:
    assert decode_record(encode_record(RECORD), RECORD.key) == RECORD


def test_every_flipped_bit_is_seen() -> None:
    content = encode_record(RECORD)
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(StoreError, match="damaged record"):
                decode_record(bytes(flipped), RECORD.key)


def test_every_truncation_is_seen() -> None:
    content = encode_record(RECORD)
    for length in range(len(content)):
        with pytest.raises(StoreError, match="damaged record"):
            decode_record(content[:length], RECORD.key)


def test_a_record_of_another_key_is_refused_even_when_it_is_whole() -> None:
    with pytest.raises(StoreError, match="made for another key"):
        decode_record(encode_record(RECORD), "2" * 64)


def test_a_record_whose_key_is_not_the_digest_of_its_preimage_is_refused() -> None:
    other = replace(RECORD, preimage={**PREIMAGE, "version": 2})
    with pytest.raises(StoreError, match="not the digest of its preimage"):
        decode_record(encode_record(other), RECORD.key)


@pytest.mark.parametrize(
    "changed",
    [{"tree": "../../etc"}, {"wall_time_s": 1}, {"facts": []}, {"created_at": None}],
)
def test_a_field_of_the_wrong_type_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="wrong type"):
        decode_record(encode_record(replace(RECORD, **changed)), RECORD.key)


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"\xff", b"[" * 100_000, b"NaN"])
def test_what_is_not_a_record_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(StoreError, match="damaged record"):
        decode_record(content, RECORD.key)
