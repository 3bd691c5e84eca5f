"""What the command line prints at the end."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline.report import render_terminal_summary
from tests.report.example import NO_DRIVER, Variant, example_report, image_report
from tests.report.faults import FAULTY, LAYER, fault_report


@pytest.mark.parametrize("variant", get_args(Variant))
def test_the_verdict_comes_first_and_every_target_has_its_line(variant: Variant) -> None:
    lines = render_terminal_summary(example_report(variant)).splitlines()
    assert lines[0].startswith(f"{variant.upper()}  minilm 20260930T101112-4f2a9c: ")
    for target in ("cpu-fp32", "cpu-int8", "rtx-fp16"):
        assert sum(line.startswith(f"  {target} ") for line in lines) == 1
    assert len(lines) <= 25


def test_a_target_line_has_cosine_speedup_with_interval_and_size() -> None:
    text = render_terminal_summary(example_report())
    line = next(line for line in text.splitlines() if line.startswith("  cpu-int8"))
    assert "worst cosine 0.998015" in line
    assert "2.41× (2.26× to 2.55×) at 1 x 32" in line  # noqa: RUF001
    assert line.endswith("23.4 MiB")


def test_what_was_not_run_is_named_with_its_reason_and_is_not_called_passed() -> None:
    text = render_terminal_summary(example_report())
    line = next(line for line in text.splitlines() if line.startswith("  rtx-fp16"))
    assert "passed" not in line
    assert "partly checked" in line
    assert "proxy" in line
    assert f"speed and device parity not run, because {NO_DRIVER}" in text


def test_a_broken_gate_is_shown_with_number_limit_and_the_stage_to_blame() -> None:
    text = render_terminal_summary(example_report("failed"))
    assert "last_hidden_state.cosine_similarity is 0.9704755, the limit is >= 0.99" in text
    assert "quantize_dynamic@cpu-int8 brought 100 % of the error" in text


def test_a_failed_stage_is_shown_with_signal_last_line_and_hint() -> None:
    text = render_terminal_summary(example_report("error"))
    assert "engine@rtx-fp16-sm120 (SIGKILL): the process was ended by SIGKILL" in text
    assert "last line: [TRT-RTX] [I] Building for compute capability 12.0" in text
    assert "hint: the kernel's out-of-memory killer" in text


def test_many_failures_are_counted_not_listed() -> None:
    report = example_report("failed")
    broken = next(gate for gate in report.gates if not gate.is_allowed)
    text = render_terminal_summary(report.model_copy(update={"gates": (broken,) * 500}))
    assert "and 494 more, see report.md" in text
    assert len(text.splitlines()) <= 25
    assert "500 of 500 gates do not hold" in text


def test_a_required_gate_that_was_not_run_counts_as_broken() -> None:
    report = example_report()
    gates = tuple(
        gate.model_copy(update={"is_allowed": gate.verdict != "not_run"}) for gate in report.gates
    )
    text = render_terminal_summary(report.model_copy(update={"gates": gates, "verdict": "failed"}))
    assert "2 of 12 gates do not hold" in text
    assert f"was not run, because {NO_DRIVER}; the recipe needs it" in text


def test_an_empty_report_still_says_how_it_went() -> None:
    empty = example_report("error").model_copy(
        update={"targets": (), "nodes": (), "gates": (), "reasons": ("the plan is empty",)}
    )
    text = render_terminal_summary(empty)
    assert text.startswith("ERROR")
    assert "the plan is empty" in text


def test_right_answers_and_warnings_are_told() -> None:
    text = render_terminal_summary(image_report())
    told = (
        "accuracy 78.00 %, the checkpoint 80.50 %: drop 2.50 points (0.50 to 5.50 points), "
        "1 gained, 6 lost"
    )
    assert f"      {told}\n" in text
    assert f"      proxy {told[:8]}" in text
    assert "\nWarnings:\n  samples@calibration: 3 of 128 calibration samples" in text


def test_a_fault_has_one_line_with_targets_stage_and_layer() -> None:
    text = render_terminal_summary(fault_report())
    _, _, found = text.partition("\nFindings:\n")
    line, *rest = found.splitlines()
    assert line.startswith(f"  cpu-fp32, cpu-int8: the fault is made by `{FAULTY}`")
    assert LAYER in line
    assert not rest
    assert "Gates that do not hold" not in text
    assert len(text.splitlines()) <= 15


def test_gates_that_no_finding_is_about_are_listed_after_the_findings() -> None:
    report = fault_report()
    speed = next(gate for gate in report.gates if gate.gate == "speed")
    slow = speed.model_copy(update={"verdict": "failed", "is_allowed": False, "reason": "slow"})
    text = render_terminal_summary(report.model_copy(update={"gates": (*report.gates, slow)}))
    assert text.index("Findings:") < text.index("Other gates that do not hold:\n  speed cpu-fp32")
