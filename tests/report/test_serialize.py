"""`report.json` comes back as it was written, and nothing else is read as a report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.errors import ArtifactError
from pipeline.report import load_report, report_json
from tests.report.example import Variant, example_report


@pytest.mark.parametrize("variant", get_args(Variant))
def test_a_report_comes_back_as_it_was_written(variant: Variant, tmp_path: Path) -> None:
    report = example_report(variant)
    path = tmp_path / "report.json"
    path.write_text(report_json(report))
    assert load_report(path) == report


def test_equal_reports_have_equal_text_whatever_the_order_of_their_facts() -> None:
    report = example_report()
    turned = report.model_copy(update={"recipe": dict(reversed(report.recipe.items()))})
    assert report_json(turned) == report_json(report)


def test_the_text_is_indented_ascii_json_that_ends_with_one_newline() -> None:
    text = report_json(example_report().model_copy(update={"name": "modèle \x1b[31m"}))
    assert text.isascii()
    assert text.startswith('{\n  "')
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert "\x1b" not in text


def test_numbers_that_are_not_finite_become_null() -> None:
    facts = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5}
    report = example_report()
    first = report.nodes[0].model_copy(update={"facts": facts, "wall_time_s": math.nan})
    text = report_json(report.model_copy(update={"nodes": (first,)}))
    node = json.loads(text, parse_constant=pytest.fail)["nodes"][0]
    assert node["facts"] == {"a": None, "b": [None, {"c": None}], "d": 1.5}
    assert node["wall_time_s"] is None


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(report_json(example_report())) | changes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a report"),
        ("{}", "is not a report"),
        ('{"schema_version": NaN}', "is not JSON"),
        (changed(schema_version=2), "schema_version 2"),
        (changed(schema_version="1"), 'schema_version "1"'),
        (changed(schema_version=True), "schema_version true"),
        (changed(verdict="fine"), "is damaged: verdict"),
        (changed(unknown=1), "is damaged: unknown"),
        (changed(targets=[{"name": "cpu"}]), "is damaged: targets.0"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ArtifactError) as caught:
        load_report(path)
    assert complaint in caught.value.message
    assert caught.value.where == str(path)


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_report(path)
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ArtifactError, match="is not JSON"):
        load_report(path)
