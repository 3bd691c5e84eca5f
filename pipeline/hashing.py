"""Digests and canonical JSON: the ground under every key. SHA-256, always in full.

A key is the digest of a *tagged* canonical JSON document, so two documents of different kinds never
share a key even when their content is the same (after `redun/hashing.py`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

JSON: TypeAlias = "None | bool | int | float | str | Sequence[JSON] | Mapping[str, JSON]"

CHUNK_BYTES = 1 << 20


def canonical_json(value: JSON) -> str:
    """The one text of a JSON value: sorted keys, no spaces, ASCII only.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot say.
        TypeError: for a value that is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of bytes, as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits; reads in chunks, releases the GIL."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def tagged_digest(tag: str, value: JSON) -> str:
    """SHA-256 of a JSON value under a type tag such as `convert/stage-key/1`."""
    return sha256_bytes(f"{tag}\n{canonical_json(value)}".encode())
