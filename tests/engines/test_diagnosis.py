from __future__ import annotations

import pytest

from pipeline.engines.diagnosis import (
    build_failure,
    graph_failure,
    lossy_constants,
    notable_warnings,
    process_failure,
    real_errors,
    require_no_wrong_engine_warning,
)
from pipeline.errors import EngineBuildError
from pipeline.graph.engine_checks import GraphProblem

NOISE = "[checkMacros.cpp::catchCudaError::212] Error Code 1: Cuda Runtime (In x: cudaError 35)"


def test_errors_are_kept_and_the_noise_of_a_machine_without_a_gpu_is_not() -> None:
    records = [("INFO", "a"), ("ERROR", NOISE), ("INTERNAL_ERROR", "b"), ("ERROR", "c")]
    assert real_errors(records) == ["b", "c"]


def test_warnings_are_given_once_and_benign_ones_not_at_all() -> None:
    records = [
        ("WARNING", "Make sure input x has Int64 binding."),
        ("WARNING", "odd"),
        ("WARNING", "odd"),
        ("ERROR", "e"),
    ]
    assert notable_warnings(records) == ["odd"]
    require_no_wrong_engine_warning(records)


def test_the_size_of_missing_workspace_is_given_in_mib() -> None:
    said = "Error Code 2: OutOfMemory (Requested size was 62202880 bytes.)"
    error = build_failure("", [("ERROR", said), ("ERROR", NOISE)], 16 << 20)
    assert "needs 59.3 MiB, more scratch memory than is allowed (16 MiB)" in error.message
    assert NOISE not in error.message


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Unexpected exception std::bad_alloc", "ran out of memory"),
        ("the model contains HW-specific datatypes: int4", "lacks a type"),
        ("Attention operation was not supported by a dedicated kernel", "cast the graph first"),
    ],
)
def test_known_failures_come_with_a_way_out(said: str, hint: str) -> None:
    error = build_failure("", [("ERROR", said)], None)
    assert said in error.message
    assert hint in error.hint


def test_a_failure_without_a_word_says_so() -> None:
    assert "does not say why" in build_failure("", [("ERROR", NOISE)], None).message


def test_a_crash_gives_the_signal_and_the_last_lines_only() -> None:
    lines = [f"line {index}" for index in range(50)]
    error = process_failure(-11, "SIGSEGV", lines)
    assert "was killed by SIGSEGV" in error.message
    assert "line 49" in error.message
    assert "line 39" not in error.message
    assert not error.hint


def test_problems_are_grouped_by_what_they_are_and_all_named() -> None:
    problems = [
        GraphProblem("a", "NonZero", "not supported", "rewrite"),
        GraphProblem("b", "Unique", "not supported", "rewrite"),
        GraphProblem("input x", "", "dead", "export again"),
    ]
    error = graph_failure(problems)
    assert isinstance(error, EngineBuildError)
    assert "3 nodes or inputs" in error.message
    assert "  not supported: a (NonZero), b (Unique)" in error.message
    assert error.hint == "rewrite; export again"


def test_constants_that_the_type_cannot_hold_are_found_among_the_printed_lines() -> None:
    printed = "WARNING: in op clip, operand beta payload type requires precision-lose casting"
    assert lossy_constants(["x", printed]) == [
        "clip: the constant beta is not exact in the type of the node"
    ]
