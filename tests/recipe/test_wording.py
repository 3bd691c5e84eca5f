from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic_core.core_schema import ErrorType

from pipeline.recipe import Recipe
from pipeline.recipe.schema import expanded_schema
from pipeline.recipe.wording import PATTERN_WORDS, WORDING, nearest

# What each kind of pydantic-core schema can find wrong in JSON input, beyond what it wraps.
# A kind that is not here fails the test: look up what it can say, and word it.
ERRORS_OF: dict[str, set[str]] = {
    "any": set(),
    "bool": {"bool_type"},
    "default": set(),
    "definitions": set(),
    "definition-ref": set(),
    "dict": {"dict_type"},
    "float": {"float_type"},
    "function-after": {"value_error", "assertion_error"},
    "function-before": {"value_error", "assertion_error"},
    "int": {"int_type", "int_from_float"},
    "list": {"list_type"},
    "literal": {"literal_error"},
    "model": {"model_type"},
    "model-fields": {"model_attributes_type", "missing", "extra_forbidden"},
    "none": {"none_required"},
    "nullable": set(),
    "str": {"string_type"},
    "tagged-union": {"model_attributes_type", "union_tag_invalid", "union_tag_not_found"},
    "tuple": {"tuple_type", "missing", "too_long"},
    "union": set(),  # the branches' own
}
CONSTRAINTS = {
    "ge": "greater_than_equal",
    "gt": "greater_than",
    "le": "less_than_equal",
    "lt": "less_than",
    "multiple_of": "multiple_of",
    "pattern": "string_pattern_mismatch",
}
LENGTHS = {"min_length": "too_short", "max_length": "too_long"}
NEVER_HERE = {"serialization", "metadata", "function"}


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str) and schema["type"] != "model-field":
            yield schema
        for key, inner in schema.items():
            if key not in NEVER_HERE:
                yield from nodes(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from nodes(inner)


def possible_errors(node: dict[str, Any]) -> set[str]:
    assert node["type"] in ERRORS_OF, f"a new kind of schema: {node['type']}"
    lengths = {key: f"string_{name}" for key, name in LENGTHS.items()}
    limits = CONSTRAINTS | (lengths if node["type"] == "str" else LENGTHS)
    found = {error for key, error in limits.items() if key in node}
    if node.get("allow_inf_nan") is False or node["type"] == "float":
        found.add("finite_number")
    return ERRORS_OF[node["type"]] | found


def test_every_error_that_the_schema_can_produce_is_worded() -> None:
    possible: set[str] = set()
    for node in nodes(Recipe.__pydantic_core_schema__):
        possible |= possible_errors(node)
    assert {"missing", "literal_error", "union_tag_invalid", "greater_than"} <= possible
    # A union's missing tag is worded as the missing or misspelt key that it is.
    assert possible - set(WORDING) == {"union_tag_not_found"}


def test_a_new_kind_of_schema_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="a new kind of schema: date"):
        possible_errors({"type": "date"})


def test_the_table_names_only_errors_that_pydantic_has() -> None:
    known = set(get_args(ErrorType))
    assert set(WORDING) - known == {"union"}


def test_every_pattern_of_the_schema_is_said_in_words() -> None:
    def patterns(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            if isinstance(schema.get("pattern"), str):
                yield schema["pattern"]
            yield from schema.get("patternProperties", ())
            for inner in schema.values():
                yield from patterns(inner)
        elif isinstance(schema, list):
            for inner in schema:
                yield from patterns(inner)

    found = set(patterns(expanded_schema()))
    assert found == set(PATTERN_WORDS)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("per_chanel", "per_channel"),
        ("perChannel", "per_channel"),
        ("PER-CHANNEL", "per_channel"),
        ("colour", None),
        ("", None),
        ("x" * 200_000, None),
    ],
)
def test_the_nearest_key_is_found_or_none(word: str, meant: str | None) -> None:
    assert nearest(word, ["per_channel", "mode", "samples"]) == meant
