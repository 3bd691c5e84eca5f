"""`report.json`: the report as text, and back."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import from_json

from pipeline.errors import ArtifactError
from pipeline.report.schema import SCHEMA_VERSION, Report

if TYPE_CHECKING:
    from pathlib import Path


def report_json(report: Report) -> str:
    """The text of `report.json`: sorted keys, two spaces, ASCII, one newline at the end.

    JSON has no NaN and no infinity: where the report holds one, `null` is written.
    """
    document = _without_non_finite(report.model_dump(mode="json"))
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _without_non_finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(item) for item in value]
    return value


def load_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        ArtifactError: when the file is missing, is not a report, is damaged, or has a
            `schema_version` that this version of `convert` does not know.
    """
    where = str(path)
    try:
        # A third of the time of `json.loads`, and it refuses NaN and deep nesting itself.
        document = from_json(path.read_bytes(), allow_inf_nan=False)
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=where) from error
    except ValueError as error:
        raise ArtifactError(f"is not JSON: {error}", where=where) from error
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ArtifactError("is not a report: it has no `schema_version`", where=where)
    version = document["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"has schema_version {json.dumps(version)}; this version of convert reads "
            f"{SCHEMA_VERSION}",
            where=where,
            hint="read it with the version of convert that wrote it, or convert again",
        )
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"is damaged: {key}: {first['msg']}", where=where) from error
