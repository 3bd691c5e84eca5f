"""Every tolerance is failed here by a graph that is broken on purpose, and held by the good one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.parity.stage_gates import JudgedGraph, judge_stage, noise_of
from pipeline.parity.tolerances import SMALLEST_FLOOR, TOLERANCES, floor_value
from pipeline.parity.types import Metrics, NoiseFloor, OutputParity, Parity, SampleMetrics
from tests.parity import converted as faults
from tests.parity.converted import converted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import GateResult

SMALL = (faults.epsilon, faults.tanh_for_erf)
PLAIN = (
    faults.mask_ignored,
    faults.inputs_merged,
    faults.position_shift,
    faults.bias_dropped,
    faults.nan_when_all_is_masked,
)
BY_PROBES = {
    faults.rare_tokens_lost: {"rare_tokens", "longest", "last_tokens"},
    faults.second_type_lost: {"token_types"},
    faults.mask_by_length: {"left_padding", "mask_with_holes"},
    faults.far_positions_lost: {"longest", "rare_tokens", "last_tokens", "left_padding"},
}
"""Fault that no sample shows -> kinds of probes, of which one is the worst."""


def _graph(arithmetic: Arithmetic = "float32") -> JudgedGraph:
    return JudgedGraph(
        target="cpu",
        component="model",
        stage="fuse",
        node="fuse@cpu",
        arithmetic=arithmetic,
        is_proxy=False,
    )


def _judge(
    parity: Parity, arithmetic: Arithmetic = "float32", own_limit: float | None = None
) -> tuple[GateResult, ...]:
    return judge_stage(_graph(arithmetic), parity, converted().floors, own_limit)


def _broken(
    tmp_path: Path, fault: Callable[[onnx.ModelProto], None], *, has_probes: bool = True
) -> Parity:
    model = converted().model()
    fault(model)
    return converted().compare(model, tmp_path, has_probes=has_probes)


def _has_passed(results: tuple[GateResult, ...]) -> bool:
    return all(result.is_allowed and result.verdict == "passed" for result in results)


def test_the_good_graph_passes_by_every_arithmetic(tmp_path: Path) -> None:
    parity = converted().compare(converted().model(), tmp_path)
    assert parity.problems == ()
    assert len({probe.kind for probe in parity.probes}) == 8
    for arithmetic in TOLERANCES:
        (result,) = _judge(parity, arithmetic)
        assert result.verdict == "passed"
        assert result.metric == "fuse.logits.noise"
        assert result.node == "fuse@cpu"


@pytest.mark.parametrize("fault", [*SMALL, *PLAIN], ids=lambda fault: fault.__name__)
def test_a_fault_fails_float32(fault: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    results = _judge(_broken(tmp_path, fault))
    assert not _has_passed(results)
    assert all(result.reason for result in results if not result.is_allowed)


@pytest.mark.parametrize(
    ("arithmetic", "fault"),
    [
        ("float16", faults.bias_dropped),
        ("float16", faults.position_shift),
        ("bfloat16", faults.position_shift),
        ("quantized", faults.head_negated),
    ],
)
def test_a_fault_fails_coarser_arithmetic_too(
    arithmetic: Arithmetic, fault: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    assert not _has_passed(_judge(_broken(tmp_path, fault), arithmetic))


@pytest.mark.parametrize("fault", BY_PROBES, ids=lambda fault: fault.__name__)
def test_a_fault_that_no_sample_shows_is_shown_by_a_probe(
    fault: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    assert _has_passed(_judge(_broken(tmp_path / "without", fault, has_probes=False)))
    (result,) = _judge(_broken(tmp_path / "with", fault))
    assert result.verdict == "failed"
    assert any(kind.replace("_", " ") in result.reason for kind in BY_PROBES[fault])


def test_nan_where_all_is_masked_is_said_in_a_sentence(tmp_path: Path) -> None:
    parity = _broken(tmp_path, faults.nan_when_all_is_masked)
    (problem,) = parity.problems
    assert "every token is masked" in problem
    assert "NaN" in problem
    assert _has_passed(
        _judge(_broken(tmp_path / "without", faults.nan_when_all_is_masked, has_probes=False))
    )


def test_a_limit_of_the_recipe_replaces_the_derived_one(tmp_path: Path) -> None:
    good = converted().compare(converted().model(), tmp_path / "good")
    (tight,) = _judge(good, own_limit=1e-12)
    assert tight.verdict == "failed"
    assert tight.limit == "<= 1e-12"
    broken = _broken(tmp_path / "broken", faults.epsilon)
    assert not _has_passed(_judge(broken))
    (loose,) = _judge(broken, own_limit=0.5)
    assert loose.verdict == "passed"


def test_a_limit_of_the_recipe_does_not_excuse_problems(tmp_path: Path) -> None:
    results = _judge(_broken(tmp_path, faults.nan_when_all_is_masked), own_limit=1e9)
    assert "fuse.problems" in [result.metric for result in results if not result.is_allowed]


def _parity(*noises: float | None) -> Parity:
    def metrics(noise: float | None) -> Metrics:
        return Metrics(
            cosine_similarity=None,
            cosine_similarity_mean=None,
            max_abs_diff=None,
            mean_abs_diff=None,
            relative_l2=None,
            sqnr_db=None,
            non_finite=int(noise is None),
            elements=4,
            rmse=noise,
            reference_rms=None if noise is None else 1.0,
        )

    samples = tuple(
        SampleMetrics(index=i, metrics=metrics(noise)) for i, noise in enumerate(noises)
    )
    whole = metrics(None if None in noises else 0.0)
    return Parity(
        outputs=(OutputParity(name="logits", metrics=whole, samples=samples),),
        problems=(),
        session="test",
        batch_size=1,
        samples_seen=len(samples),
    )


def _floor(value: float) -> dict[str, NoiseFloor]:
    floor = NoiseFloor(component="model", output="logits", float64=value, threads=0.0, samples=1)
    return {"logits": floor}


def test_the_worst_sample_is_judged_and_named() -> None:
    (result,) = judge_stage(_graph(), _parity(1e-7, 1e-4, 1e-7), _floor(1e-6), None)
    assert result.measured == 1e-4
    assert result.reason.startswith("sample 1 is 100 times as far")


def test_one_sample_without_a_number_fails_whatever_the_limit_is() -> None:
    (result,) = judge_stage(_graph(), _parity(1e-7, None), _floor(1e-6), 1e9)
    assert result.verdict == "failed"
    assert result.measured is None
    assert "sample 1 gives no finite number" in result.reason


def test_nothing_compared_is_no_pass() -> None:
    (result,) = judge_stage(_graph(), _parity(), _floor(1e-6), None)
    assert result.verdict == "failed"
    assert result.reason == "nothing was compared"


def test_without_a_floor_only_what_needs_none_is_judged() -> None:
    (result,) = judge_stage(_graph(), _parity(1e-7), {}, None)
    assert result.verdict == "failed"
    assert "was not measured" in result.reason
    (result,) = judge_stage(_graph(), _parity(1e-7), {}, 1e-3)
    assert result.verdict == "passed"
    (result,) = judge_stage(_graph("quantized"), _parity(0.1), {}, None)
    assert result.verdict == "passed"


def test_a_graph_of_another_component_says_which() -> None:
    graph = JudgedGraph(
        target="cpu",
        component="decoder",
        stage="export",
        node="export.decoder",
        arithmetic="float32",
        is_proxy=True,
    )
    (result,) = judge_stage(graph, _parity(1e-7), _floor(1e-6), None)
    assert result.metric == "decoder.export.logits.noise"
    assert result.is_proxy


def test_equal_outputs_have_no_noise_even_of_a_size_of_zero() -> None:
    zero = Metrics(
        cosine_similarity=None,
        cosine_similarity_mean=None,
        max_abs_diff=0.0,
        mean_abs_diff=0.0,
        relative_l2=0.0,
        sqnr_db=None,
        non_finite=0,
        elements=4,
        rmse=0.0,
        reference_rms=0.0,
    )
    assert noise_of(zero, 0.0) == 0.0
    assert noise_of(zero.model_copy(update={"rmse": 1e-3}), 0.0) is None


@pytest.mark.parametrize("arithmetic", TOLERANCES)
def test_limits_grow_with_the_floor_between_their_ends(arithmetic: Arithmetic) -> None:
    tolerance = TOLERANCES[arithmetic]
    limits = [tolerance.limit(floor) for floor in (0.0, SMALLEST_FLOOR, 1e-6, 1e-5, 1e-3, 1.0)]
    assert limits == sorted(limits)
    assert limits[0] == limits[1]
    assert limits[-1] == tolerance.ceiling


def test_coarser_arithmetic_is_allowed_more() -> None:
    limits = [
        TOLERANCES[kind].limit(1e-6) for kind in ("float32", "float16", "bfloat16", "quantized")
    ]
    assert limits == sorted(limits)


def test_the_floor_is_the_larger_of_both_measurements() -> None:
    floor = NoiseFloor(component="model", output="logits", float64=1e-7, threads=3e-7, samples=1)
    assert floor_value(floor) == 3e-7
    assert floor_value(None) == 0.0
