"""The part of SARIF 2.1.0 that convert writes, as a JSON Schema; everything else is refused.

Written by hand from the specification (OASIS, SARIF 2.1.0 with errata 01). It is stricter than the
official schema, which the tests hold the report against too: no key that we do not mean to write is
allowed, and a rule that is only in the text of the specification is in here.
"""

from __future__ import annotations

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
MESSAGE = _object(("text",), text=TEXT)
POSITIVE = {"type": "integer", "minimum": 1}
BAG = {"type": "object"}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
KIND = {"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]}

RULE = _object(
    ("id",),
    id=TEXT,
    name=TEXT,
    shortDescription=MESSAGE,
    fullDescription=MESSAGE,
    help=MESSAGE,
    defaultConfiguration=_object(level=LEVEL),
)
LOCATION = _object(
    physicalLocation=_object(
        ("artifactLocation",),
        artifactLocation=_object(("uri",), uri={"type": "string", "pattern": r"^[!#-~]+$"}),
        region=_object(("startLine",), startLine=POSITIVE, startColumn=POSITIVE),
    ),
    logicalLocations={"type": "array", "items": _object(name=TEXT, kind=TEXT), "minItems": 1},
)
RESULT = _object(
    ("message", "ruleId", "locations"),
    ruleId=TEXT,
    ruleIndex={"type": "integer", "minimum": 0},
    kind=KIND,
    level=LEVEL,
    message=MESSAGE,
    locations={"type": "array", "items": LOCATION, "minItems": 1},
    partialFingerprints={"type": "object", "additionalProperties": TEXT},
    properties=BAG,
) | {
    # 3.27.10: what is no failure has no level.
    "oneOf": [
        {"properties": {"kind": {"const": "fail"}, "level": {"not": {"const": "none"}}}},
        {"properties": {"kind": {"not": {"const": "fail"}}, "level": {"const": "none"}}},
    ]
}
NOTIFICATION = _object(
    ("message",), level=LEVEL, message=MESSAGE, descriptor=_object(("id",), id=TEXT)
)
RUN = _object(
    ("tool", "results"),
    tool=_object(
        ("driver",),
        driver=_object(
            ("name",),
            name=TEXT,
            version=TEXT,
            rules={"type": "array", "items": RULE, "uniqueItems": True},
        ),
    ),
    automationDetails=_object(id=TEXT),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    invocations={
        "type": "array",
        "items": _object(
            ("executionSuccessful",),
            executionSuccessful={"type": "boolean"},
            toolExecutionNotifications={"type": "array", "items": NOTIFICATION},
        ),
    },
    results={"type": "array", "items": RESULT},
    properties=BAG,
)
SCHEMA = _object(
    ("version", "runs"),
    **{
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "items": RUN, "minItems": 1, "maxItems": 1},
    },
)
