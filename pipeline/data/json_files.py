"""JSON files of a checkpoint, which may be missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is no such file.

    Raises:
        StageError: it is no JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as err:
        raise StageError(f"`{path.name}` is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise StageError(f"`{path.name}` is not a JSON object")
    return value
