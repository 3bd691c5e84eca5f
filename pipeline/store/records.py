"""The record of one stage result: what was asked (preimage), what came out (tree, facts).

A record is filed under its key as canonical JSON with a checksum of its own, so that any flipped
bit is seen, and its key must be the digest of its preimage, so that a record that was copied to
another name is seen as well.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError
from pipeline.hashing import JSON, canonical_json, tagged_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_TAG = "convert/stage-key/1"
"""Type tag of a stage key: `key == tagged_digest(KEY_TAG, preimage)`."""

_CHECKSUM_TAG = "convert/stage-record/1"
_FIELDS = {
    "key",
    "preimage",
    "tree",
    "facts",
    "wall_time_s",
    "peak_rss_mib",
    "created_at",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage result as the store files it. Failures are never filed.

    Attributes:
        key: 64 hex digits; the digest of `preimage` under `KEY_TAG`.
        preimage: Everything that could change the output.
        tree: Digest of the output directory's manifest, 64 hex digits.
        facts: What the stage said of its output.
        wall_time_s: Of the run that made it.
        peak_rss_mib: Of the process that made it.
        created_at: UTC, `2026-01-31T12:00:00Z`; for people, nothing depends on it.
    """

    key: str
    preimage: Mapping[str, JSON]
    tree: str
    facts: Mapping[str, JSON]
    wall_time_s: float
    peak_rss_mib: float
    created_at: str


def is_sha256(text: object) -> bool:
    """Whether this is a full SHA-256 in lower-case hex, and so safe as a file name."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def require_sha256(text: str, what: str) -> None:
    """Refuse anything but a full digest before it becomes part of a path.

    Raises:
        ValueError: it is a mistake of the caller, not of the user.
    """
    if not is_sha256(text):
        raise ValueError(f"{what} {text!r} is not 64 lower-case hex digits")


def encode_record(record: StageRecord) -> bytes:
    """The one spelling of a record, checksum included.

    Raises:
        TypeError: when preimage or facts are not JSON.
        ValueError: when they hold NaN or infinity.
    """
    fields = _fields(record)
    checksum = tagged_digest(_CHECKSUM_TAG, fields)
    return (canonical_json({**fields, "checksum": checksum}) + "\n").encode()


def decode_record(content: bytes, key: str) -> StageRecord:
    """Read what `encode_record` wrote.

    Raises:
        StoreError: when it is damaged, or does not belong to `key`.
    """
    try:
        document = json.loads(content.decode())
        if not isinstance(document, dict) or set(document) != _FIELDS | {"checksum"}:
            raise StoreError("damaged record: fields are missing or unknown")
        record = _record(document)
        is_canonical = encode_record(record) == content
    except (ValueError, RecursionError) as err:  # not UTF-8, not JSON, NaN, or nested too deep
        raise StoreError(f"damaged record: {err}") from err
    if not is_canonical:
        raise StoreError("damaged record: its checksum or its spelling is wrong")
    if record.key != key:
        raise StoreError(f"damaged record: it was made for another key, {record.key!r:.80}")
    if tagged_digest(KEY_TAG, record.preimage) != key:
        raise StoreError("damaged record: its key is not the digest of its preimage")
    return record


def normalise_json(value: Mapping[str, JSON]) -> dict[str, JSON]:
    """The value as it will be read back: tuples become lists, keys become text.

    Raises:
        TypeError: when it is not JSON.
        ValueError: when it holds NaN or infinity.
    """
    normal: dict[str, JSON] = json.loads(canonical_json(value))
    return normal


def _fields(record: StageRecord) -> dict[str, JSON]:
    return {
        "key": record.key,
        "preimage": record.preimage,
        "tree": record.tree,
        "facts": record.facts,
        "wall_time_s": record.wall_time_s,
        "peak_rss_mib": record.peak_rss_mib,
        "created_at": record.created_at,
    }


def _record(document: dict[str, Any]) -> StageRecord:
    """Check the types of what came from a file, so that nothing below meets a surprise."""
    texts = (document["key"], document["tree"], document["created_at"])
    numbers = (document["wall_time_s"], document["peak_rss_mib"])
    objects = (document["preimage"], document["facts"])
    is_typed = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, float) and number - number == 0 for number in numbers)
        and all(isinstance(value, dict) for value in objects)
    )
    if not is_typed or not is_sha256(document["tree"]):
        raise StoreError("damaged record: a field has the wrong type")
    return StageRecord(**{name: document[name] for name in _FIELDS})
