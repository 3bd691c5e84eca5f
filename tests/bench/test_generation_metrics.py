"""Times of generation: formulas on a clock that is set by hand, and a real graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.bench.generation_job import GenerationJob
from pipeline.bench.generation_launcher import launch_generation
from pipeline.bench.generation_metrics import (
    GenerationTimes,
    Work,
    summarize,
    time_generation,
    utilization,
)
from pipeline.bench.machine_peaks import MachinePeaks, measure_peaks
from pipeline.checks.base import Measured
from pipeline.checks.generation_speed import (
    GENERATION_SPEED,
    GenerationSpeedLimits,
    ServerLimits,
)
from pipeline.errors import StageError
from pipeline.graph.token_costs import token_costs
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.stages.benchmark_generation import (
    BENCHMARK_GENERATION,
    BenchmarkGenerationConfig,
    ServerScenario,
)
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from tests.decoders import TinyDecoder

KINDS = ("decode_tokens_per_s", "ttft_ms", "tpot_ms")
WORK = Work(batch=2, prompt=10, tokens=4)


def test_every_figure_follows_its_formula() -> None:
    times = GenerationTimes(work=WORK, stamps=(0.5, 0.6, 0.8, 0.9))
    assert times.ttft_ms == 500.0
    assert times.itl_ms == pytest.approx((100.0, 200.0, 100.0))
    assert times.tpot_ms == pytest.approx((900.0 - 500.0) / 3)
    assert times.prefill_tokens_per_s == 2 * 10 / 0.5
    assert times.decode_tokens_per_s == pytest.approx(2 * 3 / 0.4)
    slower = GenerationTimes(work=WORK, stamps=(1.5, 1.7, 1.9, 2.1))
    found = summarize([times, slower, slower], 256)
    assert found["ttft_ms"] == 1500.0
    assert found["tpot_ms"] == pytest.approx(200.0)
    assert found["itl_p50_ms"] == pytest.approx(200.0)
    assert found["decode_tokens_per_s"] == pytest.approx(10.0)
    assert (found["calls"], found["cache_bytes_per_token"]) == (3, 256)


def test_the_loop_is_timed_token_by_token(tiny_decoder: TinyDecoder) -> None:
    clock = iter(range(100))
    with OrtDecoder(tiny_decoder.root / "export/model.onnx", threads=1) as decoder:
        times = time_generation(decoder, WORK, now=lambda: float(next(clock)))
        assert times.stamps == (1.0, 2.0, 3.0, 4.0)
        with pytest.raises(FeedError, match="prompt without a token"):
            time_generation(decoder, Work(batch=1, prompt=0, tokens=2))


def test_the_stage_times_every_work_and_the_check_judges_it(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    config = BenchmarkGenerationConfig(optimizations="all", works=((1, 4, 3), (2, 4, 3)), calls=2)
    context = RecordingContext(tmp_path)
    ports = {"model": tiny_decoder.root / "export"}
    facts = BENCHMARK_GENERATION.run(config, ports, tmp_path, context)
    assert [(found["batch"], found["calls"]) for found in facts["times"]] == [(1, 2), (2, 2)]
    assert all(found["cache_bytes_per_token"] == 256 for found in facts["times"])
    assert context.steps[-1][:2] == (6, 6)
    assert set(facts["formulas"]) >= {"ttft", "itl", "tpot"}
    measured = _measured(facts)
    free = {
        each.metric: each for each in GENERATION_SPEED.judge(measured, GenerationSpeedLimits())
    }
    assert {each.limit for each in free.values()} == {"only measured"}
    assert set(free) == {
        f"export.{name}"
        for name in (
            *(f"{kind}.{work}" for kind in KINDS for work in ("1x4+3", "2x4+3")),
            "cold_start_s",
            "peak_rss_mib",
        )
    }
    strict = GenerationSpeedLimits(
        decode_tokens_per_s=1e12, ttft_ms=1e-6, tpot_ms=1e-6, cold_start_s=1e-6, peak_rss_mib=1.0
    )
    assert not any(result.is_allowed for result in GENERATION_SPEED.judge(measured, strict))


def test_a_process_of_its_own_tells_what_starting_costs(
    tiny_decoder: TinyDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine that was busy when it was measured first.
    found = [MachinePeaks(read_bytes_per_s=1.0, float32_flops_per_s=1.0)]
    monkeypatch.setattr(
        "pipeline.bench.machine_peaks.measure_peaks",
        lambda threads: found.pop() if found else measure_peaks(threads),
    )
    scenario = ServerScenario(requests_per_s=200.0, requests=5, batch=2, ttft_ms=6e4, tpot_ms=6e4)
    config = BenchmarkGenerationConfig(
        optimizations="all", works=((1, 4, 3),), calls=1, server=scenario
    )
    ports = {"model": tiny_decoder.root / "export"}
    facts = BENCHMARK_GENERATION.run(config, ports, tmp_path, RecordingContext(tmp_path))
    assert 0 < facts["load_s"] < facts["cold_start_s"]
    # Python with numpy and ONNX Runtime takes more than this, and a model of 20,000 weights nothing.
    assert 30 < facts["peak_rss_mib"] < 1000
    assert all(0 < found["mbu"] < 1 and 0 < found["mfu"] < 1 for found in facts["times"])
    server = facts["server"][0]
    assert (server["requests"], server["good"]) == (5, 1.0)
    assert 0 < server["goodput_per_s"] == server["served_per_s"]
    limits = ServerLimits(**scenario.model_dump(), goodput_per_s=1e9)
    judged = GENERATION_SPEED.judge(_measured(facts), GenerationSpeedLimits(server=limits))
    assert [each.metric for each in judged if not each.is_allowed] == ["export.goodput_per_s"]


def test_a_launch_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    job = GenerationJob(
        model=str(tmp_path / "model.onnx"),
        optimizations="all",
        threads=1,
        works=((1, 4, 3),),
        calls=1,
        server=None,
        spawned_s=0.0,
    )
    with pytest.raises(StageError, match=r"ended with exit code 1; its last lines:\n.*model.onnx"):
        launch_generation(job, tmp_path)


def test_utilization_follows_its_formulas() -> None:
    times = {
        "batch": 2,
        "prompt": 10,
        "tokens": 4,
        "tpot_ms": 100.0,
        "prefill_tokens_per_s": 40.0,
        "cache_bytes_per_token": 256,
    }
    peaks = {"read_bytes_per_s": 1e6, "float32_flops_per_s": 1e5}
    found = utilization(times, weight_bytes=10_000, flops=500, peaks=peaks)
    assert found["mbu"] == pytest.approx((10_000 + 2 * 12 * 256) / 0.1 / 1e6)
    assert found["mfu"] == pytest.approx(40.0 * 500 / 1e5)


def test_costs_of_a_token_are_those_of_the_checkpoint(tiny_decoder: TinyDecoder) -> None:
    costs = token_costs(tiny_decoder.root / "export/model.onnx")
    # Two layers of queries and output (32 x 32), keys and values (32 x 16), three products of 32 x 64;
    # then the head, tied to the table of 97 words.
    products = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 97
    assert (costs.products, costs.flops) == (products, 2 * products)
    assert costs.weight_bytes == 4 * products


def test_the_machine_is_measured() -> None:
    peaks = measure_peaks(1, read_bytes=1 << 22, width=256)
    assert peaks.read_bytes_per_s > 1e7
    assert peaks.float32_flops_per_s > 1e7
    busy = MachinePeaks(read_bytes_per_s=1.0, float32_flops_per_s=1e30)
    assert peaks.or_better(busy) == MachinePeaks(
        read_bytes_per_s=peaks.read_bytes_per_s, float32_flops_per_s=1e30
    )


def _measured(facts: dict[str, Any]) -> Measured:
    return Measured(
        target="cpu",
        component="model",
        stage="export",
        node="export",
        arithmetic="float32",
        is_proxy=False,
        facts=facts,
        floors={},
    )
