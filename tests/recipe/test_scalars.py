from __future__ import annotations

import pytest

from pipeline.recipe.scalars import resolve_plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-0.25", -0.25),
        ("010", 10),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0xFF", 255),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
    ],
)
def test_yaml_1_2_reads_it_as_a_value(text: str, value: object) -> None:
    resolved = resolve_plain(text)
    assert resolved == value
    assert type(resolved) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "n",
        "tRUE",
        "nUll",
        "12:30:45",
        "2026-01-31",
        "1_000",
        "0b11",
        "1e",
        "e3",
        ".",
        "-",
        "+",
        "0x",
        "0o8",
        "-0x1",
        "1.2.3",
        "\u0661",
        "inf",
        "nan",
        "Infinity",
    ],
)
def test_yaml_1_2_reads_it_as_text(text: str) -> None:
    assert resolve_plain(text) == text


@pytest.mark.parametrize(
    "text",
    [*[".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e999", "-1e999"], str(2**63), "0x" + "f" * 17]
    + [f"{start}{'9' * 5000}" for start in ("", "-", "1.")],
)
def test_a_number_that_json_cannot_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        resolve_plain(text)
