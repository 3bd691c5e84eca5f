"""What rounds of OpenVINO GenAI are summed up to, and what is said of texts that differ."""

from __future__ import annotations

import pytest

from pipeline.bench.openvino_job import Comparison, OpenVinoRecord, Round
from pipeline.bench.openvino_launch import differences
from pipeline.bench.openvino_metrics import OPENVINO_FORMULAS, summarize_openvino
from pipeline.checks.base import Measured
from pipeline.checks.openvino_serving import OPENVINO_SERVING, OpenVinoServingLimits

SAME = ((1, 2, 3), (4, 5))


def _comparison(base_s: float, other_s: float, **changes: object) -> Comparison:
    rounds = tuple(
        Round(base_s=base_s * noise, other_s=other_s * noise, control_s=base_s * noise * 1.1)
        for noise in (1.0, 2.0, 4.0)
    )
    return Comparison(rounds=rounds, compared=2, differences=()).model_copy(update=changes)


def _record(**changes: object) -> OpenVinoRecord:
    record = OpenVinoRecord(
        version="2026.4",
        load_s=1.0,
        batching=_comparison(3.0, 1.0),
        one_batch=_comparison(1.5, 1.0),
        prefix=_comparison(0.4, 0.1),
        speculative=_comparison(1.0, 2.0),
        drafted=40,
        accepted=30,
        peak_rss_mib=None,
    )
    return record.model_copy(update=changes)


def _measured(record: OpenVinoRecord) -> Measured:
    facts = {"problems": [], **summarize_openvino(record, new_tokens=60, questions=4)}
    return Measured(
        target="cpu-fp32",
        component="model",
        stage="fuse",
        node="fuse",
        arithmetic="float32",
        is_proxy=False,
        facts=facts,
        floors={},
    )


def test_ratios_are_of_each_round_whatever_the_machine_does_meanwhile() -> None:
    found = summarize_openvino(_record(), new_tokens=60, questions=4)
    batching, prefix, speculative = found["batching"], found["prefix"], found["speculative"]
    assert isinstance(batching, dict)
    assert isinstance(prefix, dict)
    assert isinstance(speculative, dict)
    ratio = batching["throughput_ratio"]
    assert isinstance(ratio, dict)
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((3.0, 3.0, 3.0))
    assert ratio["noise_floor"] == pytest.approx(0.1)
    assert batching["static_tokens_per_s"] == pytest.approx(60 / 6)
    assert batching["continuous_tokens_per_s"] == pytest.approx(60 / 2)
    assert prefix["ttft_ms"] == pytest.approx(200)
    assert prefix["cached_ttft_ms"] == pytest.approx(50)
    assert speculative["acceptance_rate"] == 0.75
    one_batch = found["one_batch"]
    assert isinstance(one_batch, dict)
    names = {*batching, *one_batch, *prefix, *speculative, "noise_floor"} & set(OPENVINO_FORMULAS)
    assert names == set(OPENVINO_FORMULAS)


def test_texts_that_differ_are_named_with_the_place() -> None:
    assert differences(SAME, SAME) == ()
    changed, shorter = differences(SAME, ((1, 9, 3), (4,)))
    assert (changed.request, changed.at, changed.base, changed.other) == (0, 1, (2, 3), (9, 3))
    assert (shorter.request, shorter.at, shorter.base, shorter.other) == (1, 1, (5,), ())


def test_limits_are_on_ratios_and_other_tokens_always_fail() -> None:
    measured = _measured(_record())
    assert all(r.verdict == "passed" for r in OPENVINO_SERVING.judge(measured, _limits()))
    limits = _limits(
        throughput_ratio=2.9, prefix_speedup=4.5, acceptance_rate=0.8, draft_speedup=1
    )
    failed = {
        result.metric.removeprefix("fuse."): result.reason
        for result in OPENVINO_SERVING.judge(measured, limits)
        if result.verdict == "failed"
    }
    assert failed == {
        "prefix_speedup": "it is 4",
        "acceptance_rate": "it is 0.75",
        "draft_speedup": "it is 0.5",
    }
    parted = _comparison(3.0, 1.0, differences=differences(SAME, ((1, 9, 3), (4, 5))))
    results = OPENVINO_SERVING.judge(_measured(_record(speculative=parted)), _limits())
    (wrong,) = [result for result in results if result.verdict == "failed"]
    assert wrong.metric == "fuse.different_texts.speculative"
    assert wrong.reason == (
        "1 of 2 texts differ; text 0 from its new token 1 on: [2, 3] and [9, 3]"
    )


def test_what_openvino_cannot_read_fails_with_the_reason() -> None:
    from dataclasses import replace

    measured = replace(_measured(_record()), facts={"problems": ["OpenVINO cannot read it"]})
    (result,) = OPENVINO_SERVING.judge(measured, _limits())
    assert (result.verdict, result.reason) == ("failed", "OpenVINO cannot read it")


def test_without_a_draft_nothing_is_said_of_one() -> None:
    results = OPENVINO_SERVING.judge(_measured(_record(speculative=None)), _limits())
    assert not any("draft" in result.metric or "acceptance" in result.metric for result in results)


def _limits(**values: float) -> OpenVinoServingLimits:
    return OpenVinoServingLimits(**values)  # type: ignore[arg-type]
