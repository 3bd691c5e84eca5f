from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe.events import MAX_DEPTH, MAX_NODES, read_document
from pipeline.recipe.problems import Position


def test_every_key_and_value_has_its_place() -> None:
    text = "a: 1\nb:\n  - x\n  - {c: true,  d: [~]}\n'é': é\n"
    document = read_document(text, "r.yaml")
    assert document.value == {"a": 1, "b": ["x", {"c": True, "d": [None]}], "é": "é"}
    assert document.keys == {
        ("a",): Position(1, 1),
        ("b",): Position(2, 1),
        ("b", 1, "c"): Position(4, 6),
        ("b", 1, "d"): Position(4, 16),
        ("é",): Position(5, 1),
    }
    assert document.values == {
        (): Position(1, 1),
        ("a",): Position(1, 4),
        ("b",): Position(3, 3),
        ("b", 0): Position(3, 5),
        ("b", 1): Position(4, 5),
        ("b", 1, "c"): Position(4, 9),
        ("b", 1, "d"): Position(4, 19),
        ("b", 1, "d", 0): Position(4, 20),
        ("é",): Position(5, 6),
    }


def test_quotes_and_blocks_make_text_of_anything() -> None:
    text = '["1", \'true\', "~", ".nan"]'
    assert read_document(text, "r.yaml").value == ["1", "true", "~", ".nan"]
    assert read_document("a: |\n  1\n", "r.yaml").value == {"a": "1\n"}
    assert read_document("a: >-\n  1\n  2\n", "r.yaml").value == {"a": "1 2"}


def test_keys_are_the_text_that_is_written() -> None:
    document = read_document("{1: a, null: b, 010: c, no: d, 1e3: e}", "r.yaml")
    assert document.value == {"1": "a", "null": "b", "010": "c", "no": "d", "1e3": "e"}


def test_escaped_pairs_of_surrogates_are_one_character() -> None:
    assert read_document('a: "\\ud83d\\ude00"', "r.yaml").value == {"a": "\U0001f600"}


def test_the_first_of_two_equal_keys_counts_and_the_second_is_a_problem() -> None:
    document = read_document("a: {x: 1}\na: {x: .nan, y: [2]}\nb: 3\n", "r.yaml")
    assert document.value == {"a": {"x": 1}, "b": 3}
    assert ("a", "y") not in document.values
    assert document.values["a", "x"] == Position(1, 8)
    (problem,) = document.problems
    assert (problem.position, problem.path) == (Position(2, 1), ("a",))
    assert problem.text() == "given twice, first at line 1, column 1"


def test_the_depth_and_the_number_of_nodes_may_reach_their_limits() -> None:
    value = read_document("[" * MAX_DEPTH + "]" * MAX_DEPTH, "r.yaml").value
    for _ in range(MAX_DEPTH - 1):
        assert isinstance(value, list)
        (value,) = value
    assert value == []
    with pytest.raises(RecipeError, match=f"nested more than {MAX_DEPTH} deep"):
        read_document("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "r.yaml")

    items = MAX_NODES - 1
    assert len(read_document("[" + "1," * items + "]", "r.yaml").values) == MAX_NODES
    with pytest.raises(RecipeError, match="at most 5,000 keys and values"):
        read_document("[" + "1," * MAX_NODES + "]", "r.yaml")


PIECES = st.sampled_from(
    [
        *"[]{},:?-&*!|>'\"%@`#~ \n\t\\",
        "- ",
        ": ",
        "? ",
        "\n  ",
        "---\n",
        "...\n",
        "<<",
        "a",
        "1",
        "\\x",
        "\\U",
        "é",
        "\u2028",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_a_document_or_a_recipe_error(text: str) -> None:
    try:
        document = read_document(text, "r.yaml")
    except RecipeError:
        return
    assert () in document.values
