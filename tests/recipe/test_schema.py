from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.recipe import Recipe
from pipeline.recipe.events import read_document
from pipeline.recipe.schema import (
    example,
    expanded_schema,
    flow_text,
    locate,
    properties,
    recipe_json_schema,
    resolve,
)


def test_the_schema_says_which_dialect_and_which_recipe_it_is() -> None:
    schema = recipe_json_schema()
    assert list(schema)[:2] == ["$schema", "$id"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:convert-pipeline:recipe:1"
    assert schema["title"] == "A recipe of convert"
    assert schema["additionalProperties"] is False
    assert schema["else"]["required"] == [
        "recipe",
        "name",
        "model",
        "shapes",
        "data",
        "targets",
        "gates",
    ]
    assert json.loads(json.dumps(schema)) == schema


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = recipe_json_schema()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for inner in node.values():
                yield from references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from references(inner)

    for reference in references(schema):
        assert reference.rpartition("/")[2] in schema["$defs"]


def test_every_key_of_a_recipe_is_described() -> None:
    for key, inner in properties(locate(()).schema).items():
        assert inner.get("description"), key


@pytest.mark.parametrize("key", expanded_schema()["required"])
def test_the_example_of_a_missing_key_is_itself_valid(key: str) -> None:
    line = example(key, properties(locate(()).schema)[key])
    if not line:
        return  # too long for one line
    value = read_document(line, "line").value
    assert isinstance(value, dict)
    annotation = Recipe.model_fields[key].annotation
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value[key]))
    except ValidationError as err:
        pytest.fail(f"{line}: {err}")


def test_the_location_of_an_error_leads_through_unions() -> None:
    located = locate(("targets", 1, "onnxruntime", "quantization", "static", "per_channel"))
    assert located.path == ("targets", 1, "quantization", "per_channel")
    assert located.schema["type"] == "boolean"
    assert "mode" in properties(located.parent)
    assert locate(("benchmark", "shapes", 0, 1)).schema["type"] == "integer"
    assert resolve(locate(("gates", "coverage", "any_name", "min")).schema)["type"] == "number"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"min": 1, "of": ["a", "1", "no", "a b"]}, '{min: 1, of: [a, "1", no, "a b"]}'),
        (["true", "", "010", None], '["true", "", "010", null]'),
        ("package:gt/model", "package:gt/model"),
        ("é\n", '"é\\n"'),
        (0.5, "0.5"),
    ],
)
def test_flow_text_reads_back_as_the_same_value(value: Any, text: str) -> None:
    assert flow_text(value) == text
    assert read_document(f"[{text}]", "line").value == [value]
