"""Times of encoders with decoders on real graphs, and texts in order of length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.bench.generation_metrics import Work
from pipeline.bench.pair_metrics import pair_utilization, text_sources, time_pair
from pipeline.bench.sorted_batching import compare_orders
from pipeline.checks.base import Measured
from pipeline.checks.generation_speed import (
    GENERATION_SPEED,
    BatchingLimits,
    GenerationSpeedLimits,
)
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.stages.benchmark_generation import (
    BENCHMARK_GENERATION,
    BenchmarkGenerationConfig,
    TimedBatching,
)
from pipeline.stages.export import EXPORT, ExportConfig
from tests.decoders import random_texts
from tests.pairs import FRAMES, SPEECH, TEXTS, build_pair
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from tests.decoders import TinyDecoder

LENGTHS = [1, 9, 2, 8, 3, 7]
BATCHING = TimedBatching(texts=6, batch=2, rounds=2, tokens=3, longest=20)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of a T5 with 2 layers of 4 heads of width 8 in its decoder."""
    root = tmp_path_factory.mktemp("pair")
    checkpoint = build_pair(root / "checkpoint")
    for part in ("encoder", "decoder"):
        (root / part).mkdir()
        config = ExportConfig(task=TEXTS, component=part)
        EXPORT.run(config, {"checkpoint": checkpoint}, root / part, RecordingContext(root))
    return root


def _measured(facts: dict[str, Any]) -> Measured:
    return Measured(
        target="cpu",
        component="decoder",
        stage="export",
        node="export.decoder",
        arithmetic="float32",
        is_proxy=False,
        facts=facts,
        floors={},
    )


def test_sorted_texts_leave_less_padding() -> None:
    """The clock goes by what a batch holds, padding included."""
    clock, seen = [0.0], []

    def write(places: list[int]) -> None:
        seen.append(tuple(places))
        clock[0] += len(places) * max(LENGTHS[at] for at in places)

    rounds = []
    found: Any = compare_orders(
        write,  # type: ignore[arg-type]
        LENGTHS,
        batch=2,
        tokens=1,
        rounds=3,
        now=lambda: clock[0],
        on_round=lambda: rounds.append(len(seen)),
    )
    assert rounds == [6, 12, 18, 24]  # one round that is not timed, both orders in each
    assert {*seen[:3]} == {(0, 2), (4, 5), (3, 1)}
    assert seen[3:6] == [(0, 1), (2, 3), (4, 5)]
    assert seen[6:9] == seen[3:6]  # who was second is first now
    unsorted, in_order = 2 * (9 + 8 + 7), 2 * (2 + 7 + 9)
    assert found["sorted_over_unsorted"] == pytest.approx(unsorted / in_order)
    assert found["interval"] == pytest.approx([unsorted / in_order] * 2)
    assert found["sorted_tokens_per_s"] == pytest.approx((30 + 6) / in_order)
    assert found["unsorted_padding"] == pytest.approx(1 - 30 / unsorted)
    assert found["lengths"] == [1, 9]


def test_the_source_is_part_of_the_first_token(pair: Path) -> None:
    clock = iter(range(100))
    with (
        OnnxRuntimeRunner(pair / "encoder/model.onnx", threads=1) as encoder,
        OnnxRuntimeRunner(pair / "decoder/model.onnx", threads=1) as decoder,
    ):
        ran: list[float] = []
        run = encoder.run

        def counted(*given: Any, **named: Any) -> Any:
            ran.append(next(clock))
            return run(*given, **named)

        encoder.run = counted  # type: ignore[method-assign]
        work = Work(batch=2, prompt=7, tokens=3)
        times = time_pair(encoder, decoder, work, now=lambda: float(next(clock)))
    assert ran == [1]  # behind the start, before the first token, and once
    assert times.stamps == (2.0, 3.0, 4.0)
    assert times.work == work


def test_utilization_counts_the_source_once_for_every_text() -> None:
    times = {"batch": 2, "tokens": 4, "cache_bytes_per_token": 10, "source_cache_bytes": 100}
    found = pair_utilization(
        {**times, "tpot_ms": 1.0}, weight_bytes=1000, peaks={"read_bytes_per_s": 1e7}
    )
    assert found == {"mbu": pytest.approx((1000 + 2 * (100 + 20)) / 1e4)}


def test_sources_are_padded_behind() -> None:
    found = text_sources([[5, 6], [7]])
    assert found["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert all(array.dtype == np.int64 for array in found.values())


def test_the_stage_times_both_graphs_together(pair: Path, tmp_path: Path) -> None:
    samples = random_texts(tmp_path / "samples")
    config = BenchmarkGenerationConfig(
        optimizations="all", works=((1, 5, 3), (2, 5, 3)), calls=1, batching=BATCHING
    )
    context = RecordingContext(tmp_path)
    ports = {"model": pair / "decoder", "encoder": pair / "encoder", "samples": samples}
    facts: Any = BENCHMARK_GENERATION.run(config, ports, tmp_path, context)
    assert [(found["batch"], found["prompt"]) for found in facts["times"]] == [(1, 5), (2, 5)]
    per_token = 2 * 2 * 4 * 8 * 4  # layers, keys and values, heads, width, bytes
    for found in facts["times"]:
        assert found["cache_bytes_per_token"] == per_token
        assert found["source_cache_bytes"] == 5 * per_token
        assert 0 < found["mbu"] < 1
        assert "mfu" not in found
    assert "encoder" in facts["formulas"]["ttft"]
    assert context.steps[-1][:2] == (7, 7)
    (batching,) = facts["batching"]
    low, high = batching["interval"]
    assert low <= batching["sorted_over_unsorted"] <= high
    judged = GENERATION_SPEED.judge(_measured(facts), GenerationSpeedLimits())
    assert {each.limit for each in judged} == {"only measured"}
    assert {each.metric for each in judged} >= {
        "decoder.export.ttft_ms.1x5+3",
        "decoder.export.batching.sorted_over_unsorted",
        "decoder.export.batching.sorted_over_unsorted.low",
    }
    strict = GenerationSpeedLimits(batching=BatchingLimits(sorted_over_unsorted=1e6))
    failed = [
        each.metric
        for each in GENERATION_SPEED.judge(_measured(facts), strict)
        if not each.is_allowed
    ]
    assert failed == ["decoder.export.batching.sorted_over_unsorted.low"]


def test_prompts_of_a_decoder_are_sorted_too(tiny_decoder: TinyDecoder, tmp_path: Path) -> None:
    config = BenchmarkGenerationConfig(
        optimizations="all", works=((1, 4, 2),), calls=1, batching=BATCHING
    )
    ports = {"model": tiny_decoder.root / "export", "samples": tiny_decoder.root / "samples"}
    facts: Any = BENCHMARK_GENERATION.run(config, ports, tmp_path, RecordingContext(tmp_path))
    (found,) = facts["batching"]
    assert (found["texts"], found["rounds"], found["lengths"][1]) == (6, 2, 20)  # cut there
    assert found["sorted_padding"] < found["unsorted_padding"]
    assert found["sorted_tokens_per_s"] > 0


@pytest.mark.slow
def test_sounds_are_as_long_as_the_model_wants_them(tmp_path: Path) -> None:
    checkpoint = build_pair(tmp_path / "checkpoint", "whisper")
    ports = {}
    for port, part in (("encoder", "encoder"), ("model", "decoder")):
        ports[port] = tmp_path / part
        ports[port].mkdir()
        config = ExportConfig(task=SPEECH, component=part)
        EXPORT.run(config, {"checkpoint": checkpoint}, ports[port], RecordingContext(tmp_path))
    asked = BenchmarkGenerationConfig(optimizations="all", works=((2, 5, 3),), calls=1)
    facts: Any = BENCHMARK_GENERATION.run(asked, ports, tmp_path, RecordingContext(tmp_path))
    (found,) = facts["times"]
    per_token = 2 * 2 * 4 * 8 * 4
    assert (found["batch"], found["prompt"]) == (2, FRAMES)
    assert found["source_cache_bytes"] == FRAMES // 2 * per_token  # it reads every second frame
    assert facts["batching"] == []
