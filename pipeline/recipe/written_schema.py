"""The JSON Schema of a recipe as it is written, from that of a recipe as it is expanded.

What differs: every scalar may be or hold a variable, and a recipe that extends another needs no key
and no part of a mapping. Lists are never merged, so their items are whole all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.recipe.plain import LANGUAGE_KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.recipe.schema import Schema

VARIABLE = "Variable"
PARTIAL = "Partial"
_SCALARS = frozenset({"string", "integer", "number", "boolean"})
_VARIABLE_SCHEMA = {
    "type": "string",
    "pattern": r"\$\{[a-z][a-z0-9_]*\}",
    "description": "`${name}` stands for the value of a variable; `$${` for the text `${`",
}


def as_written(schema: Schema) -> Schema:
    """The schema of files that expand to what `schema` describes.

    Args:
        schema: Of an expanded recipe, with the keys of the recipe language among its properties.
    """
    definitions = schema["$defs"]
    whole = _Writer("")
    partial = _Writer(PARTIAL)
    properties = schema["properties"]
    head = {key: schema[key] for key in ("description", "type", "additionalProperties")}
    return head | {
        # The editor's list of keys; what each may hold is said by one of the branches.
        "properties": {key: _described(inner) for key, inner in properties.items()},
        "if": {"required": ["extends"]},
        "then": {"properties": partial.properties(properties)},
        "else": {"properties": whole.properties(properties), "required": schema["required"]},
        "$defs": {
            VARIABLE: _VARIABLE_SCHEMA,
            **{name: whole.written(inner) for name, inner in definitions.items()},
            **{PARTIAL + name: partial.written(inner) for name, inner in definitions.items()},
        },
    }


def _described(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("description", "examples") if key in schema}


class _Writer:
    """Rewrites schemas.

    Args:
        prefix: Of the definitions that references lead to.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def properties(self, properties: Mapping[str, Schema]) -> dict[str, Schema]:
        """What the keys of a mapping may hold; those of the language hold no variables."""
        return {
            key: _without_default(inner) if key in LANGUAGE_KEYS else self.written(inner)
            for key, inner in properties.items()
        }

    def written(self, schema: Schema) -> Schema:
        """A schema that allows variables, and mappings with keys missing where they may merge."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return schema | {"$ref": f"#/$defs/{self._prefix}{name}"}
        if schema.get("type") in _SCALARS or "const" in schema or "enum" in schema:
            described = _described(schema)
            inner = {key: value for key, value in schema.items() if key not in described}
            return described | {"anyOf": [inner, {"$ref": f"#/$defs/{VARIABLE}"}]}
        result: dict[str, Any] = dict(schema)
        if "oneOf" in schema:  # a variable fits the tag of every branch
            result["anyOf"] = result.pop("oneOf")
            result.pop("discriminator", None)
        for key in ("anyOf", "prefixItems"):
            if key in result:
                writer = _Writer("") if key == "prefixItems" else self
                result[key] = [writer.written(inner) for inner in result[key]]
        if isinstance(items := schema.get("items"), dict):
            result["items"] = _Writer("").written(items)
        if "properties" in schema:
            result["properties"] = self.properties(schema["properties"])
        for key in ("additionalProperties", "patternProperties"):
            result |= self._named(key, schema)
        if self._prefix:
            result.pop("required", None)
        return result

    def _named(self, key: str, schema: Schema) -> Schema:
        """The schemas of keys that are free names."""
        value = schema.get(key)
        if key == "patternProperties" and value is not None:
            written = {name: self.written(inner) for name, inner in value.items()}
            return {key: written, "additionalProperties": False}
        return {key: self.written(value)} if isinstance(value, dict) else {}


def _without_default(schema: Schema) -> Schema:
    """The language's keys are left out, never null."""
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key not in {"default", "anyOf"}}
    if "patternProperties" in rest:
        rest["additionalProperties"] = False
    return rest | ({"anyOf": options} if options else {})
