"""The JSON Schema of recipes, and questions to it: what stands at a key path, in words.

Error messages read the same schema that `convert schema` prints, so both always agree.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from pipeline.recipe.language import Entry, Language
from pipeline.recipe.plain import LANGUAGE_KEYS
from pipeline.recipe.scalars import resolve_plain
from pipeline.recipe.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.hashing import JSON
    from pipeline.recipe.problems import KeyPath

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_ID = "urn:convert-pipeline:recipe:1"

Schema: TypeAlias = dict[str, Any]
"""One JSON Schema object: foreign, open-ended JSON, and never more than that."""

_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}

_PLAIN_SAFE = re.compile(r"[A-Za-z0-9_./]([\w./:+-]*[\w./+-])?", re.ASCII)
_MAX_EXAMPLE_CHARACTERS = 90


class _InOurOrder(GenerateJsonSchema):
    """Keeps keys, above all those of examples, in the order in which they are declared."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:  # noqa: ARG002 - pydantic's signature
        return value


def recipe_json_schema() -> Schema:
    """The JSON Schema (2020-12) of a recipe, for editors; validators other than ours may use it.

    What a JSON Schema cannot say (`min <= opt <= max`, target names that differ) it leaves out.
    A recipe that extends another needs no key, and every scalar may be or hold a variable.
    """
    from pipeline.recipe.written_schema import as_written

    head = {"$schema": DIALECT, "$id": SCHEMA_ID, "title": "A recipe of convert"}
    return head | as_written(expanded_schema())


def expanded_schema() -> Schema:
    """The schema of a recipe without variables, that extends nothing, and of the language's keys."""
    schema = Recipe.model_json_schema(mode="validation", schema_generator=_InOurOrder)
    language = Language.model_json_schema(mode="validation", schema_generator=_InOurOrder)
    entry = Entry.model_json_schema(mode="validation", schema_generator=_InOurOrder)
    definitions = schema["$defs"] | language["$defs"]
    for name in schema["properties"]["targets"]["items"]["discriminator"]["mapping"].values():
        target = definitions[name.rpartition("/")[2]]
        target["properties"] = target["properties"] | entry["properties"]
    return schema | {
        "$defs": definitions,
        "properties": schema["properties"] | language["properties"],
    }


@dataclass(frozen=True, slots=True)
class Located:
    """Where in the schema a location of pydantic leads.

    Attributes:
        path: The key path in the document: the location without names of union branches.
        schema: What is allowed there; empty when nothing is (an unknown key).
        parent: The mapping or list around it.
    """

    path: KeyPath
    schema: Schema
    parent: Schema


def locate(location: Sequence[str | int]) -> Located:
    """Follow a pydantic error location through the schema."""
    schema = resolve(_root())
    parent: Schema = {}
    path: KeyPath = ()
    for item in location:
        branches = schema.get("discriminator", {}).get("mapping", {})
        if item in branches:
            schema = resolve({"$ref": branches[item]})
        elif isinstance(item, int) and schema.get("type") == "array":
            prefix = schema.get("prefixItems", [])
            inner = prefix[item] if item < len(prefix) else schema.get("items", {})
            parent, schema, path = schema, resolve(inner), (*path, item)
        elif isinstance(item, str) and schema.get("type") == "object":
            parent, schema, path = schema, resolve(_property(schema, item)), (*path, item)
        elif item in LANGUAGE_KEYS and branches:  # every branch has them alike
            parent = resolve({"$ref": next(iter(branches.values()))})
            schema, path = resolve(_property(parent, str(item))), (*path, item)
        # Anything else is pydantic's name for the branch of a union.
    return Located(path, schema, parent)


def resolve(schema: Schema) -> Schema:
    """A schema without the indirections: references followed, `X or nothing` is `X`."""
    inner = schema
    while True:
        options = [each for each in inner.get("anyOf", ()) if each.get("type") != "null"]
        if "$ref" in inner:
            inner = _root()["$defs"][inner["$ref"].rpartition("/")[2]]
        elif len(options) == 1:
            inner = options[0]
        else:
            break
    # What stands beside a reference (an example, a description) says more than what it refers to.
    beside = {key: schema[key] for key in ("description", "examples") if key in schema}
    return inner | beside


def properties(schema: Schema) -> dict[str, Schema]:
    """The keys that a mapping may have, and what each may hold."""
    return dict(schema.get("properties", {}))


def choices(schema: Schema) -> list[JSON]:
    """The values that are allowed, where they are listed one by one."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def expected(schema: Schema) -> str:
    """What is allowed, in words: `a whole number`, `text`, ..."""
    if options := choices(schema):
        return " or ".join(f"`{flow_text(option)}`" for option in options)
    if options := schema.get("anyOf", ()) or schema.get("oneOf", ()):
        words = dict.fromkeys(expected(resolve(option)) for option in options)
        if "a number" in words:  # whole ones are numbers too
            words.pop("a whole number", None)
        return " or ".join(words)
    if schema.get("type") == "array" and schema.get("maxItems", -1) == schema.get("minItems"):
        return f"a list of {schema['minItems']}"
    return _TYPE_WORDS.get(str(schema.get("type")), "something else")


def example(key: str, schema: Schema) -> str:
    """A line that could stand in a recipe, such as `samples: 64`; empty when it gets too long."""
    value = _example_value(schema)
    text = f"{key}: {flow_text(value)}"
    return text if value is not None and len(text) <= _MAX_EXAMPLE_CHARACTERS else ""


def flow_text(value: JSON) -> str:
    """A JSON value on one line, as one would write it in YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow_text(item) for item in value) + "]"
    if isinstance(value, str) and _PLAIN_SAFE.fullmatch(value) and resolves_to_itself(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def resolves_to_itself(text: str) -> bool:
    """Whether a text means itself when it is written without quotes."""
    try:
        return resolve_plain(text) == text
    except ValueError:
        return False


def _property(schema: Schema, key: str) -> Schema:
    """What a key of a mapping may hold; keys that are free names all hold the same."""
    any_name: list[Schema] = [*schema.get("patternProperties", {}).values()]
    if isinstance(rest := schema.get("additionalProperties"), dict):
        any_name.append(rest)
    return properties(schema).get(key) or next(iter(any_name), {})


@lru_cache(maxsize=1)
def _root() -> Schema:
    return expanded_schema()


def _example_value(schema: Schema) -> JSON:
    schema = resolve(schema)
    listed: list[JSON] = [*schema.get("examples", ()), *choices(schema)]
    branches: list[Schema] = schema.get("oneOf") or schema.get("anyOf") or []
    if listed:
        return listed[0]
    if branches:
        return _example_value(branches[0])
    return _example_of_type(schema)


def _example_of_type(schema: Schema) -> JSON:
    match schema.get("type"):
        case "object":
            inner = properties(schema)
            return {key: _example_value(inner[key]) for key in schema.get("required", ())}
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})]
            return [_example_value(item) for item in items]
        case "integer" | "number":
            smallest: int | float = schema.get("minimum", 1)
            return smallest
        case "boolean":
            return True
        case _:
            return None
