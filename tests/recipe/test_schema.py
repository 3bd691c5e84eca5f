from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
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


# --- the schema of what is written, with a validator that is not ours -----------------------

HERE = Path(__file__).parent
SHIPPED = sorted((HERE.parents[1] / "recipes").glob("*.yaml"))
TARGET = {"name": "cpu-${p}", "runtime": "onnxruntime", "precision": "${p}"}


def complaints(document: Any) -> list[str]:
    validator = Draft202012Validator(recipe_json_schema())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def quickstart(**changes: Any) -> Any:
    value = read_document(SHIPPED[0].with_name("quickstart.yaml").read_text(), "q").value
    assert isinstance(value, dict)
    return value | changes


def test_the_schema_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(recipe_json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_recipes_we_ship_fit_the_schema(path: Path) -> None:
    assert complaints(read_document(path.read_text(encoding="utf-8"), path.name).value) == []


@pytest.mark.parametrize(
    "document",
    [
        quickstart(vars={"n": 8, "text": "a", "must": None}),
        quickstart(name="${a}-x", limits={"time_s": "${t}", "stages": {"export": {"time_s": 1}}}),
        quickstart(matrix={"axes": {"n": [1, "a", True]}, "exclude": [{"n": 1}]}),
        quickstart(matrix={"include": [{"n": 1}]}),
        quickstart(targets=[TARGET | {"matrix": {"axes": {"p": ["fp32"]}}}]),
        quickstart(targets=[TARGET | {"runtime": "${r}"}]),
        {"extends": "base.yaml"},
        {"extends": ["a.yaml", "b.yaml"], "shapes": {"sequence": {"max": 256}}, "vars": {"a": 1}},
        {"extends": "base.yaml", "gates": {"parity": {"sqnr_db": {"min": 20}}}},
    ],
)
def test_the_schema_allows_what_the_language_has(document: Any) -> None:
    assert complaints(document) == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"extends": None},
        {"extends": []},
        {"extends": "a.yaml", "shapes": {"sequence": {"max": "many"}}},
        {"extends": "a.yaml", "shapes": {"sequenze": {"max": 1}}},
        {"extends": "a.yaml", "targets": [{"name": "a"}]},  # lists replace: items are whole
        quickstart(name="UPPER"),
        quickstart(limits={"time_s": "$n"}),
        quickstart(vars={"A": 1}),
        quickstart(vars={"a": [1]}),
        quickstart(matrix={"axes": {"n": []}}),
        quickstart(matrix={"axis": {"n": [1]}}),
        quickstart(matrix=None),
        quickstart(targets=[TARGET | {"matrix": {"axes": 1}}]),
    ],
)
def test_the_schema_refuses_what_is_wrong(document: Any) -> None:
    assert complaints(document) != []
