"""Figures read well and never flatter."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report import figures, render_html, render_junit, render_markdown, report_json
from pipeline.report.facts import MAX_ROWS, Facts
from pipeline.report.printable import MAX_CHARACTERS, printable_text
from tests.report.example import example_report

FORMS = (
    figures.figure,
    figures.cosine,
    figures.decibels,
    figures.size,
    figures.mebibytes,
    figures.milliseconds,
    figures.seconds,
    figures.ratio,
    figures.percent,
    figures.per_second,
    figures.signed,
)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (figures.figure(12345), "12,345"),
        (figures.figure(1.23456e-7), "1.235e-7"),
        (figures.cosine(0.98999999), "0.989999"),
        (figures.cosine(1 - 3e-13), f"1 {figures.MINUS} 3e-13"),
        (figures.cosine(1.0), "1"),
        (figures.judged("x.cosine_similarity", 0.98999999, holds=False), "0.98999999"),
        (figures.size(0), "0 bytes"),
        (figures.size(1023), "1023 bytes"),
        (figures.size(91_121_254), "86.9 MiB"),
        (figures.mebibytes(3287.0), "3.21 GiB"),
        (figures.milliseconds(0.4123), "0.412 ms"),
        (figures.milliseconds(1240), "1.24 s"),
        (figures.seconds(185), "3 min 05 s"),
        (figures.ratio(1.4151), f"1.42{figures.TIMES}"),
        (figures.percent(0.018), "1.8 %"),
        (figures.signed(-1e-9), f"{figures.MINUS}1e-9"),
        (figures.plural(1, "gate"), "1 gate"),
        (figures.plural(2, "launch", "launches"), "2 launches"),
    ],
)
def test_figures_read_as_people_write_them(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@given(value=st.none() | st.floats())
def test_every_form_takes_every_number(form: object, value: float | None) -> None:
    assert callable(form)
    shown = form(value)
    assert shown
    if value is not None and not math.isfinite(value):
        assert shown == "not finite"


@given(st.floats(min_value=-1, max_value=1, exclude_max=True))
def test_a_cosine_below_one_is_never_shown_as_one(value: float) -> None:
    shown = figures.cosine(value)
    assert shown not in {"1", "1.000000"}
    if figures.MINUS not in shown:
        assert float(shown) <= value


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["fired", "refused", "layers", "x"]), JSON))
def test_facts_of_any_shape_can_be_read(values: dict[str, object]) -> None:
    facts = Facts(values)
    for key in ("fired", "missing"):
        assert facts.number(key) is None or math.isfinite(facts.number(key) or 0)
        assert isinstance(facts.text(key), str)
        assert isinstance(facts.cell(key), str)
        assert isinstance(facts.child(key), Facts)
        assert isinstance(facts.records(key), tuple)
    assert all(isinstance(text, str) for row in facts.rows() for text in row)
    assert len(facts.numbers()) <= len(values)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["fusions", "attention_layers", "coverage", "layer_types", "gemm_kinds", "layer_rows"]
        ),
        JSON,
    )
)
def test_facts_of_any_shape_can_be_rendered(values: dict[str, object]) -> None:
    report = example_report()
    node = report.nodes[4].model_copy(update={"facts": values})
    target = report.targets[2]
    engine = target.engines[0].model_copy(update={"facts": values})
    changed = report.model_copy(
        update={"nodes": (node,), "targets": (target.model_copy(update={"engines": (engine,)}),)}
    )
    for render in (render_html, render_markdown, render_junit, report_json):
        assert render(changed)


def test_long_facts_are_cut_and_say_so() -> None:
    rows = Facts({str(i): i for i in range(MAX_ROWS + 50)}).rows()
    assert len(rows) == MAX_ROWS + 1
    assert rows[-1][1] == "the rest is in report.json"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable_text(text)
    assert all(char in "\n\t" or ord(char) >= 32 for char in shown)
    shown.encode()


def test_terminal_sequences_vanish_and_long_text_is_counted() -> None:
    assert printable_text("\x1b[1;31mred\x1b[0m \x1b]0;title\x07end") == "red end"
    cut = printable_text("x" * (MAX_CHARACTERS + 1000))
    assert cut.endswith("(1,000 more characters)")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "100.00 %"),
        (0.99999, "99.99 %"),
        (0.29, "29.00 %"),
        (0.0, "0.00 %"),
        (None, figures.NONE),
    ],
)
def test_a_score_is_never_rounded_up(value: float | None, shown: str) -> None:
    assert figures.score(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.005, "0.50 points"),
        (0.00001, "0.01 points"),
        (0.0, "0.00 points"),
        (-0.01, f"{figures.MINUS}1.00 points"),
        (-0.00001, "0.00 points"),
    ],
)
def test_a_drop_is_never_rounded_away(value: float, shown: str) -> None:
    assert figures.drop(value) == shown


def test_a_correlation_is_no_share_and_never_rounded_to_flatter() -> None:
    assert figures.quality("accuracy", 0.98765) == "98.76 %"
    assert figures.quality("spearman", 0.99999) == "0.9999"
    assert figures.quality("spearman", -0.5) == "−0.5000"  # noqa: RUF001
    assert figures.lost("accuracy", 0.00501) == "0.51 points"
    assert figures.lost("spearman", 0.00001) == "0.0001"
    assert figures.interval("accuracy", -0.001, 0.008) == "−0.10 to 0.80 points"  # noqa: RUF001
    assert figures.interval("spearman", None, None) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0 %"), (0.125, "12.5 %"), (1.5, "150 %"), (13_880.2, "13,880×")],  # noqa: RUF001
)
def test_a_share_of_a_limit_is_a_percentage_and_beyond_it_a_multiple(
    value: float | None, text: str
) -> None:
    assert figures.share(value) == text
