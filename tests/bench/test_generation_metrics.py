"""Times of generation: formulas on a clock that is set by hand, and a real graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.bench.generation_metrics import GenerationTimes, Work, summarize, time_generation
from pipeline.checks.base import Measured
from pipeline.checks.generation_speed import GENERATION_SPEED, GenerationSpeedLimits
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.stages.benchmark_generation import BENCHMARK_GENERATION, BenchmarkGenerationConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from tests.decoders import TinyDecoder

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
    measured = Measured(
        target="cpu",
        component="model",
        stage="export",
        node="export",
        arithmetic="float32",
        is_proxy=False,
        facts=facts,
        floors={},
    )
    free = GENERATION_SPEED.judge(measured, GenerationSpeedLimits())
    assert [result.limit for result in free] == ["only measured"] * 2
    assert free[0].metric == "export.decode_tokens_per_s.1x4+3"
    strict = GenerationSpeedLimits(decode_tokens_per_s=1e12)
    assert not any(result.is_allowed for result in GENERATION_SPEED.judge(measured, strict))
