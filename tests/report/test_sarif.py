"""`report.sarif` is SARIF 2.1.0, points at the recipe's lines, and never looks better than the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from pipeline.recipe import load_recipe_file
from pipeline.recipe.places import name_in_repository, recipe_places
from pipeline.report.places import Place, gate_key_path, target_key_path
from pipeline.report.sarif import render_sarif
from pipeline.report.schema import Report
from tests.recipes import FP32, INT8, write_recipe
from tests.report.example import Variant, example_report, image_report, not_run_gate
from tests.report.faults import FAULTY, LAYER, fault_report
from tests.report.hostile import ALL, HUGE, hostile_report
from tests.report.sarif_subset import SCHEMA

VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
OFFICIAL = jsonschema.Draft4Validator(
    json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0-rtm.5.json").read_text())
)


def validate(document: object) -> None:
    OFFICIAL.validate(document)
    VALIDATOR.validate(document)


def here(_key_path: tuple[str | int, ...]) -> Place:
    return Place(file="recipes/a b, ä.yaml", line=7, column=3)


def run_of(report: Report, **options: Any) -> dict[str, Any]:
    document = json.loads(render_sarif(report, **options))
    validate(document)
    run: dict[str, Any] = document["runs"][0]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return run


@pytest.mark.parametrize("variant", get_args(Variant))
def test_results_are_the_gates_that_do_not_hold_or_were_not_run(variant: Variant) -> None:
    report = example_report(variant)
    found = {
        (r["properties"]["target"], r["properties"]["metric"], r["level"])
        for r in run_of(report)["results"]
    }
    assert found == {
        (gate.target, gate.metric, "none" if gate.is_allowed else "error")
        for gate in report.gates
        if gate.verdict != "passed"
    }


def test_a_broken_gate_has_its_number_and_the_stage_that_brought_the_error() -> None:
    (result,) = [r for r in run_of(example_report("failed"))["results"] if r["level"] == "error"]
    assert result["ruleId"] == "gate/parity"
    assert "must be >= 0.99" in result["message"]["text"]
    assert "quantize_dynamic@cpu-int8 brought" in result["message"]["text"]
    assert result["properties"]["measured"] == pytest.approx(0.970475)


def test_what_was_not_run_and_must_be_is_an_error() -> None:
    gate = not_run_gate("device_parity", "outputs", "on the device", "rtx-fp16")
    base = example_report()
    gates = (gate.model_copy(update={"is_allowed": False}),)
    run = run_of(base.model_copy(update={"gates": gates, "verdict": "failed"}))
    assert [(r["kind"], r["level"]) for r in run["results"]] == [("fail", "error")]


def test_a_failed_stage_is_a_notification_and_a_run_without_success() -> None:
    (invocation,) = run_of(example_report("error"))["invocations"]
    assert not invocation["executionSuccessful"]
    (told,) = invocation["toolExecutionNotifications"]
    assert told["level"] == "error"
    assert "`engine@rtx-fp16-sm120` failed" in told["message"]["text"]


def test_a_verdict_that_nothing_explains_is_told_all_the_same() -> None:
    odd = example_report().model_copy(update={"verdict": "failed", "reasons": ("because",)})
    (invocation,) = run_of(odd)["invocations"]
    assert [n["message"]["text"] for n in invocation["toolExecutionNotifications"]] == ["because"]


def test_names_of_files_are_escaped_as_a_uri_is() -> None:
    result = run_of(example_report("failed"), places=here)["results"][0]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "recipes/a%20b%2C%20%C3%A4.yaml"
    assert place["region"] == {"startLine": 7, "startColumn": 3}


def test_one_gate_has_one_fingerprint_whatever_was_measured() -> None:
    def prints(report: Report) -> list[str]:
        return [r["partialFingerprints"]["gate/v1"] for r in run_of(report)["results"]]

    report = example_report("failed")
    worse = report.model_copy(
        update={
            "version": "ffffffffffff",
            "gates": tuple(
                g.model_copy(update={"measured": 0.5, "reason": "worse"}) for g in report.gates
            ),
        }
    )
    assert prints(report) == prints(worse)
    assert len(set(prints(report))) == len(prints(report))


@pytest.mark.parametrize("text", [*ALL, HUGE], ids=range(len(ALL) + 1))
def test_hostile_texts_stay_texts(text: str) -> None:
    written = render_sarif(hostile_report(text), here)
    assert written.isascii()
    validate(json.loads(written))


def _damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(render_sarif(example_report("failed"), here))
    damaged = copy.deepcopy(document)
    change(damaged)
    return damaged


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "version": lambda d: d.update(version="2.0.0"),
    "no tool": lambda d: d["runs"][0].pop("tool"),
    "unknown key": lambda d: d["runs"][0].update(extra=1),
    "level": lambda d: d["runs"][0]["results"][0].update(level="fatal"),
    "level of no failure": lambda d: d["runs"][0]["results"][0].update(kind="open", level="error"),
    "empty message": lambda d: d["runs"][0]["results"][0].update(message={}),
    "line 0": lambda d: d["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]
    .update(startLine=0),
    "blank in a uri": lambda d: d["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    ["artifactLocation"].update(uri="a b"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted({*DAMAGES} - {"level of no failure", "blank in a uri"}))
def test_the_official_schema_refuses_what_is_wrong(kind: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        OFFICIAL.validate(_damaged(DAMAGES[kind]))


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_schema_of_these_tests_refuses_what_is_wrong(kind: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(_damaged(DAMAGES[kind]))


def test_places_are_the_lines_of_the_limits(tmp_path: Path) -> None:
    own = {"cpu-int8": {"parity": {"relative_l2": {"max": 0.1}}}}
    gates = {
        "parity": {"cosine_similarity": {"min": 0.8}},
        "coverage": {"quantized_weights": {"min": 0.9}},
        "targets": own,
    }
    path = write_recipe(tmp_path / "recipe.yaml", "c", targets=[INT8], gates=gates)
    loaded = load_recipe_file(path)
    places = recipe_places(loaded)
    lines = path.read_text().splitlines()
    base = example_report("failed")
    report = base.model_copy(update={"recipe": {"gates": gates}})
    gate = next(gate for gate in base.gates if gate.target == "cpu-int8")
    for kind, metric, words in (
        ("parity", "out.relative_l2", '"max": 0.1'),
        ("coverage", "quantize_dynamic.quantized_weights", '"min": 0.9'),
        ("parity", "problems", '"parity"'),
    ):
        result = gate.model_copy(update={"gate": kind, "metric": metric})
        place = places(gate_key_path(report, result))
        near = lines[place.line - 1 : place.line + 1]
        assert any(words in line for line in near), (kind, metric, near)
    other = gate.model_copy(update={"target": "cpu-fp32", "metric": "out.cosine_similarity"})
    place = places(gate_key_path(report, other))
    assert '"cosine_similarity"' in lines[place.line - 1]


def test_files_are_named_from_the_root_of_their_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    inside = tmp_path / "repository" / "recipes" / "a.yaml"
    assert name_in_repository(inside) == "recipes/a.yaml"
    monkeypatch.chdir(tmp_path)
    assert name_in_repository(Path("elsewhere/b.yaml")) == "elsewhere/b.yaml"
    monkeypatch.chdir(tmp_path / "repository")
    assert name_in_repository(tmp_path / "elsewhere" / "b.yaml") == "b.yaml"


def test_an_image_report_is_valid_too() -> None:
    assert run_of(image_report())["properties"]["verdict"] == image_report().verdict


def test_findings_are_the_first_results_with_stage_and_layer() -> None:
    report = fault_report()
    results = run_of(report)["results"]
    found = [result for result in results if result["ruleId"] == "finding/stage"]
    assert results[: len(found)] == found
    assert [result["properties"]["target"] for result in found] == ["cpu-fp32", "cpu-int8"]
    for result, finding in zip(found, report.findings, strict=True):
        assert (result["kind"], result["level"]) == ("fail", "error")
        assert finding.sentence in result["message"]["text"]
        assert result["properties"]["stage"] == "fuse"
        assert result["properties"]["layer"] == LAYER
        assert result["properties"]["gates"] == list(finding.gates)
        names = [place["name"] for place in result["locations"][0]["logicalLocations"]]
        assert names == [finding.target, FAULTY, LAYER]
    assert len({result["partialFingerprints"]["finding/v1"] for result in found}) == 2
    broken = [r["properties"] for r in results if r["ruleId"] == "gate/stages"]
    assert {(gate["node"], gate["layer"]) for gate in broken} == {(FAULTY, LAYER)}


def test_findings_and_gates_of_stages_and_checks_have_their_places(tmp_path: Path) -> None:
    gates = {
        "parity": {"cosine_similarity": {"min": 0.8}},
        "stages": {"fuse": {"noise": 1e-5}},
        "checks": {"invariance": {"noise": 1e-5}},
    }
    path = write_recipe(tmp_path / "recipe.yaml", "c", targets=[FP32, INT8], gates=gates)
    loaded = load_recipe_file(path)
    places, lines = recipe_places(loaded), path.read_text().splitlines()
    recipe = {"targets": [{"name": "cpu-fp32"}, {"name": "cpu-int8"}], "gates": gates}
    report = fault_report().model_copy(update={"recipe": recipe})

    def line(key_path: tuple[str | int, ...]) -> str:
        return lines[places(key_path).line - 1]

    for target in ("cpu-fp32", "cpu-int8"):
        assert target in line(target_key_path(report, target))
    assert '"targets"' in line(target_key_path(report, "another"))
    for kind, word in (("stages", "1e-05"), ("invariance", '"invariance"')):
        gate = next(gate for gate in report.gates if gate.gate == kind and "fuse" in gate.node)
        assert word in line(gate_key_path(report, gate))
