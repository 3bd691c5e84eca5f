"""Annotations read as the runner reads them, and a summary that GitHub does not drop."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.report.github import (
    MAX_ANNOTATIONS,
    MAX_SUMMARY_BYTES,
    annotation_lines,
    append_summary,
    error_command,
)
from pipeline.report.places import Place
from tests.report.example import example_report
from tests.report.faults import FAULTY, LAYER, fault_report
from tests.report.hostile import ALL, HUGE, hostile_report

HOSTILE = (*ALL, HUGE, "a\n::error::b", "100%25 %0A::warning::x", "a,line=9", "::stop-commands::x")


def here(_key_path: tuple[str | int, ...]) -> Place:
    return Place(file="recipes/a,b:c.yaml", line=7, column=3)


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """Name, properties and message of a command, by the rules of actions/runner (TryParseV2)."""

    def unescaped(text: str, **marks: str) -> str:
        for code, mark in {"0D": "\r", "0A": "\n", **marks, "25": "%"}.items():
            text = text.replace(f"%{code}", mark)
        return text

    assert line.startswith("::")
    assert "\n" not in line
    assert "\r" not in line
    head, _, message = line[2:].partition("::")
    name, _, told = head.partition(" ")
    properties = dict(pair.split("=", 1) for pair in told.strip().split(",") if pair)
    marks = {"3A": ":", "2C": ","}
    return (
        name,
        {key: unescaped(value, **marks) for key, value in properties.items()},
        unescaped(message),
    )


def test_a_broken_gate_is_an_error_on_the_line_of_its_limit() -> None:
    (line,) = annotation_lines(example_report("failed"), here)
    name, properties, message = read_command(line)
    assert name == "error"
    assert properties == {
        "file": "recipes/a,b:c.yaml",
        "line": "7",
        "col": "3",
        "title": f"{example_report().name}: parity gate",
    }
    assert "must be >= 0.99" in message


def test_what_passed_has_no_annotation() -> None:
    assert annotation_lines(example_report(), here) == ()


def test_a_failed_stage_is_an_error_with_its_hint() -> None:
    (line,) = annotation_lines(example_report("error"))
    _, properties, message = read_command(line)
    assert "engine@rtx-fp16-sm120 failed" in properties["title"]
    assert "\nhint: the kernel's out-of-memory killer" in message


def test_no_more_errors_than_github_keeps_and_the_last_one_counts_the_rest() -> None:
    base = example_report("failed")
    gate = next(gate for gate in base.gates if not gate.is_allowed)
    many = base.model_copy(update={"gates": (gate,) * 25})
    lines = annotation_lines(many, here)
    assert len(lines) == MAX_ANNOTATIONS
    assert "16 more" in lines[-1]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_can_end_a_command_or_start_another(text: str) -> None:
    report = hostile_report(text)
    for line in annotation_lines(report, here):
        name, properties, _ = read_command(line)
        assert name == "error"
        assert properties.keys() <= {"file", "line", "col", "title"}
        assert properties.get("line", "7") == "7"


@pytest.mark.parametrize("text", ["a\n::error::b", "100%25 %0A::warning::x", "a,line=9", "50 %:"])
def test_a_command_reads_back_as_it_was_said(text: str) -> None:
    place = Place(file=text, line=1, column=2)
    _, properties, message = read_command(error_command(text, title=text, place=place))
    assert (properties["file"], properties["title"], message) == (text, text, text)


def test_the_summary_is_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    assert append_summary(example_report(), path)
    first = path.read_text()
    assert first.startswith("# ")
    assert append_summary(example_report("failed"), path)
    assert path.read_text().startswith(first)
    assert path.read_text().count("\n# ") == 1


@pytest.mark.parametrize(("left", "is_there", "is_short"), [(4000, True, True), (10, False, True)])
def test_the_summary_never_grows_beyond_what_github_takes(
    tmp_path: Path, *, left: int, is_there: bool, is_short: bool
) -> None:
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (MAX_SUMMARY_BYTES - left))
    assert append_summary(example_report("failed"), path) is is_there
    assert path.stat().st_size <= MAX_SUMMARY_BYTES
    added = path.read_bytes()[MAX_SUMMARY_BYTES - left :]
    assert (b"    FAILED" in added) is is_there
    assert (b"# " not in added) is is_short


def test_a_summary_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        append_summary(example_report(), tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_fault_is_one_error_on_the_line_of_its_first_target() -> None:
    report, asked = fault_report(), list[tuple[str | int, ...]]()

    def noted(key_path: tuple[str | int, ...]) -> Place:
        asked.append(key_path)
        return here(key_path)

    (line,) = annotation_lines(report, noted)
    _, properties, message = read_command(line)
    assert properties["title"] == f"{report.name}: {FAULTY}, layer {LAYER}"
    assert message.startswith(f"cpu-fp32, cpu-int8: {report.findings[0].sentence}")
    broken = sum(not gate.is_allowed for gate in report.gates)
    assert f"{broken} gates fail for it" in message
    assert asked == [("targets", 0, "name")]


def test_a_gate_that_no_finding_is_about_is_an_error_of_its_own() -> None:
    report = fault_report()
    speed = next(gate for gate in report.gates if gate.gate == "speed")
    slow = speed.model_copy(update={"verdict": "failed", "is_allowed": False, "reason": "slow"})
    both = report.model_copy(update={"gates": (*report.gates, slow)})
    _, line = annotation_lines(both, here)
    assert "speed gate" in read_command(line)[1]["title"]
