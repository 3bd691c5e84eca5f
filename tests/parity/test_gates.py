from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.types import BenchmarkResult, Interval, ShapeResult, SpeedVerdict, Timing
from pipeline.parity.gates import judge_coverage, judge_device_parity, judge_parity, judge_speed
from pipeline.parity.types import GateResult, Metrics, OutputParity, Parity
from pipeline.recipe.types import Bound, ParityGates, SpeedGate

GOOD = {
    "cosine_similarity": 0.995,
    "cosine_similarity_mean": 0.999,
    "max_abs_diff": 0.01,
    "mean_abs_diff": 0.001,
    "relative_l2": 0.02,
    "sqnr_db": 34.0,
}
LIMITS = {
    "cosine_similarity": Bound(min=0.99),
    "cosine_similarity_mean": Bound(min=0.998),
    "max_abs_diff": Bound(max=0.05),
    "mean_abs_diff": Bound(max=0.005),
    "relative_l2": Bound(max=0.05),
    "sqnr_db": Bound(min=30.0),
}
BEYOND = {
    "cosine_similarity": 0.98,
    "cosine_similarity_mean": 0.99,
    "max_abs_diff": 0.06,
    "mean_abs_diff": 0.006,
    "relative_l2": 0.06,
    "sqnr_db": 20.0,
}


def _metrics(**changes: float | None) -> Metrics:
    return Metrics.model_validate({**GOOD, "non_finite": 0, "elements": 100, **changes})


def _parity(*outputs: Metrics, problems: tuple[str, ...] = (), seen: int = 4) -> Parity:
    return Parity(
        outputs=tuple(
            OutputParity(name=f"output_{i}", metrics=metrics, samples=())
            for i, metrics in enumerate(outputs)
        ),
        problems=problems,
        session="test",
        batch_size=2,
        samples_seen=seen,
    )


def _judge(parity: Parity, gates: ParityGates | None = None) -> tuple[GateResult, ...]:
    chosen = ParityGates(**LIMITS) if gates is None else gates
    return judge_parity(parity, chosen, target="cpu", component="model", is_proxy=False)


def _failed(results: tuple[GateResult, ...]) -> list[GateResult]:
    return [result for result in results if not result.is_allowed]


def test_every_limit_is_judged_for_every_output() -> None:
    results = _judge(_parity(_metrics(), _metrics()))
    assert len(results) == 1 + 2 * len(LIMITS)
    assert {result.verdict for result in results} == {"passed"}
    assert results[0].metric == "problems"


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_number_beyond_its_limit_fails_that_metric_of_that_output_alone(name: str) -> None:
    (result,) = _failed(_judge(_parity(_metrics(), _metrics(**{name: BEYOND[name]}))))
    assert result.metric == f"output_1.{name}"
    assert result.measured == BEYOND[name]
    assert result.verdict == "failed"
    assert result.reason.startswith(f"{BEYOND[name]:g} is ")


def test_a_limit_itself_passes() -> None:
    at_limit = {name: bound.min or bound.max for name, bound in LIMITS.items()}
    assert not _failed(_judge(_parity(_metrics(**at_limit))))


def test_both_ends_of_a_bound_are_judged_and_written_out() -> None:
    gates = ParityGates.model_construct(sqnr_db=Bound(min=10, max=20))
    assert _failed(_judge(_parity(_metrics(sqnr_db=9.0)), gates))
    (result,) = _failed(_judge(_parity(_metrics(sqnr_db=21.0)), gates))
    assert result.limit == ">= 10 and <= 20"


def test_problems_fail_whatever_the_limits_are() -> None:
    (result,) = _judge(_parity(_metrics(), problems=("a", "b")), ParityGates.model_construct())
    assert (result.verdict, result.reason, result.measured) == ("failed", "a; b", 2.0)


def test_a_metric_that_could_not_be_computed_fails_and_says_why() -> None:
    nothing = dict.fromkeys(GOOD)
    infected = _metrics(**nothing, non_finite=3)
    reasons = {result.reason for result in _failed(_judge(_parity(infected)))}
    assert reasons == {"3 of 100 elements are NaN or infinite"}
    empty = _metrics(**nothing, elements=0)
    assert {r.reason for r in _failed(_judge(_parity(empty)))} == {"nothing was compared"}
    zero = ParityGates(relative_l2=Bound(max=1))
    (result,) = _failed(_judge(_parity(_metrics(relative_l2=None)), zero))
    assert "reference is zero" in result.reason


def test_no_difference_at_all_has_no_sqnr_and_passes_its_lower_limit() -> None:
    same = _metrics(max_abs_diff=0.0, relative_l2=0.0, sqnr_db=None)
    assert not _failed(_judge(_parity(same)))
    (row,) = [r for r in _judge(_parity(same)) if r.metric.endswith("sqnr_db")]
    assert row.measured is None


def test_a_missing_sqnr_beside_a_difference_fails() -> None:
    assert _failed(_judge(_parity(_metrics(sqnr_db=None))))


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_nan_passes_no_limit(name: str) -> None:
    assert _failed(_judge(_parity(_metrics(**{name: math.nan}))))


def test_a_limit_on_the_angle_of_one_number_fails_and_says_what_to_limit() -> None:
    numbers = _metrics(cosine_similarity=None, cosine_similarity_mean=None)
    failed = _failed(_judge(_parity(numbers)))
    assert [result.metric.rpartition(".")[2] for result in failed] == [
        "cosine_similarity",
        "cosine_similarity_mean",
    ]
    assert all("limit `relative_l2`" in result.reason for result in failed)


def test_a_comparison_of_nothing_fails() -> None:
    assert _failed(_judge(_parity()))
    assert _failed(_judge(_parity(_metrics(), seen=0)))


def test_a_stand_in_is_marked_on_every_row() -> None:
    rows = judge_parity(
        _parity(_metrics()), ParityGates(**LIMITS), target="x", component="encoder", is_proxy=True
    )
    assert all(row.is_proxy for row in rows)
    assert rows[1].metric == "encoder.output_0.cosine_similarity"


def test_parity_on_the_device_is_not_run_and_allowed_only_if_the_recipe_says_so() -> None:
    asked = {"target": "rtx", "proxy": "onnxruntime-cpu", "not_run_reason": "there is no GPU"}
    (refused,) = judge_device_parity(**asked, allow_not_run=("speed",))
    (allowed,) = judge_device_parity(**asked, allow_not_run=("device_parity",))
    assert refused.verdict == allowed.verdict == "not_run"
    assert (refused.is_allowed, allowed.is_allowed) == (False, True)
    assert allowed.reason == "there is no GPU; onnxruntime-cpu stood in for it"
    assert "`gates.allow_not_run` does not list `device_parity`" in refused.reason


def test_a_target_that_was_compared_itself_has_no_row_for_the_device() -> None:
    assert judge_device_parity(target="cpu", proxy="", not_run_reason="", allow_not_run=()) == ()


def _benchmark(low: float, high: float, value: float | None = None) -> BenchmarkResult:
    timing = Timing(
        latency_p50_ms=1.0,
        latency_p50_ms_interval=Interval(low=0.9, high=1.1),
        throughput_samples_per_s=1.0,
    )
    verdict: SpeedVerdict = "same"
    shape = ShapeResult(
        axes=("batch", "sequence"),
        shape=(8, 128),
        reference=timing,
        candidate=timing,
        speedup=math.sqrt(low * high) if value is None else value,
        speedup_interval=Interval(low=low, high=high),
        launch_speedups=(1.0,),
        noise_floor=0.01,
        verdict=verdict,
    )
    required = {n for n, field in BenchmarkResult.model_fields.items() if field.is_required()}
    fields = dict.fromkeys(required, 1)
    texts = {"reference": "torch", "candidate": "ort", "launches": 5, "shapes": (shape,)}
    return BenchmarkResult.model_validate({**fields, **texts})


def _speed(benchmark: BenchmarkResult | None, *, reason: str = "") -> tuple[GateResult, ...]:
    gate = SpeedGate(min_speedup_over_reference=1.0, margin=0.05)
    return judge_speed(benchmark, gate, target="cpu", allow_not_run=(), not_run_reason=reason)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.2, 1.4, ""),
        (0.95, 1.4, ""),
        (0.94, 1.4, "inconclusive"),
        (0.5, 0.94, "slower"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_speed_is_judged_by_the_low_end_of_the_interval(
    low: float, high: float, word: str
) -> None:
    (row,) = _speed(_benchmark(low, high))
    assert row.is_allowed is (word == "")
    assert row.reason.startswith(word)
    assert row.metric == "speedup at batch 8, sequence 128"


def test_what_more_launches_would_take_is_estimated_from_the_width() -> None:
    (row,) = _speed(_benchmark(0.9, 1.2, 1.06))
    # ln(1.06 / 0.9) = 0.1637 must shrink to ln(1.06 / 0.95) = 0.1096: 5 * 2.23 launches.
    assert "about 12 would do" in row.reason
    assert "`benchmark.launches`" in row.reason


def test_more_launches_are_not_promised_to_help_a_slow_candidate() -> None:
    (row,) = _speed(_benchmark(0.7, 1.1, 0.9))
    assert "would do" not in row.reason


def test_a_benchmark_without_result_fails() -> None:
    (row,) = _speed(None)
    assert row.verdict == "failed"
    (row,) = _speed(_benchmark(1, 1).model_copy(update={"shapes": ()}))
    assert row.verdict == "failed"


def test_launches_that_disagree_wildly_judge_nothing() -> None:
    (result,) = _speed(_benchmark(1.3, 30_000.0))
    assert result.verdict == "failed"
    assert "too busy to measure" in result.reason


def test_launches_that_disagree_pass_a_limit_that_is_far_away() -> None:
    (result,) = _speed(_benchmark(11.5, 57.0))
    assert result.verdict == "passed"


def test_speed_that_cannot_be_measured_here_is_not_run() -> None:
    (row,) = _speed(None, reason="there is no GPU")
    assert (row.verdict, row.is_allowed) == ("not_run", False)
    gate = SpeedGate(min_speedup_over_reference=1.0)
    (row,) = judge_speed(
        None, gate, target="rtx", allow_not_run=("speed",), not_run_reason="there is no GPU"
    )
    assert (row.verdict, row.is_allowed) == ("not_run", True)


COVERAGE = {
    "cpu": {"fuse@cpu": {"fused_attention": 1.0}},
    "int8": {"fuse@cpu": {"fused_attention": 1.0}, "quantize": {"quantized_weights": 0.8}},
}


def test_coverage_is_judged_where_it_is_reported() -> None:
    rows = judge_coverage(COVERAGE, {"quantized_weights": Bound(min=0.5)})
    assert [(row.target, row.metric, row.verdict) for row in rows] == [
        ("int8", "quantize.quantized_weights", "passed")
    ]


def test_too_little_coverage_fails() -> None:
    (row,) = judge_coverage(COVERAGE, {"quantized_weights": Bound(min=0.95)})
    assert (row.verdict, row.reason) == ("failed", "0.8 is below 0.95")


def test_a_coverage_that_nobody_reports_fails_and_names_the_nearest() -> None:
    (row,) = judge_coverage(COVERAGE, {"quantised_weights": Bound(min=0.1)})
    assert row.verdict == "failed"
    assert "did you mean `quantized_weights`?" in row.reason
    (row,) = judge_coverage({"cpu": {}}, {"x": Bound(min=0.1)})
    assert row.verdict == "failed"


def test_coverage_that_is_not_limited_is_not_judged() -> None:
    assert judge_coverage(COVERAGE, {}) == ()


@given(st.floats(allow_nan=True), st.floats(-10, 10), st.floats(-10, 10))
def test_a_verdict_is_passed_exactly_when_the_number_is_within(
    value: float, one: float, two: float
) -> None:
    low, high = sorted((one, two))
    gates = ParityGates.model_construct(sqnr_db=Bound(min=low, max=high))
    row = _judge(_parity(_metrics(sqnr_db=value)), gates)[1]
    assert (row.verdict == "passed") is (low <= value <= high)


def test_coverage_that_a_failed_stage_would_have_reported_is_not_called_misspelt() -> None:
    bounds = {"quantized_weights": Bound(min=0.9), "misspelt": Bound(min=0.9)}
    results = judge_coverage({"cpu": {}}, bounds, unfinished={"quantized_weights"})
    assert [result.metric for result in results] == ["misspelt"]
