"""JSON files of a checkpoint, which are foreign until proven otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

MAX_JSON_BYTES = 64 << 20


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object; messages call the file `name`.

    Raises:
        ArtifactError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"`{name}` is larger than 64 MiB", where=str(path))
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"`{name}` is not JSON: {error}", where=str(path)) from error
    except OSError as error:
        raise ArtifactError(
            f"`{name}` cannot be read: {error.strerror}", where=str(path)
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"`{name}` is not a JSON object", where=str(path))
    return value
