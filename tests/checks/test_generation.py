"""The check of generation on real graphs of a tiny decoder: good ones pass, each damage fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from pipeline.checks.base import Measured
from pipeline.checks.generation import GENERATION, GenerationLimits
from pipeline.stages.check_generation import CHECK_GENERATION, CheckGenerationConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.decoders import POSITIONS, TASK, random_texts, write_reference
from tests.mutants.faults import decoding
from tests.mutants.surgery import Graph
from tests.stages.context import RecordingContext
from tests.stages.test_quantize_static import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import GateResult
    from pipeline.stages.base import AnyStage, StageConfig
    from tests.decoders import TinyDecoder


def _measure(
    ports: dict[str, Path], scratch: Path, optimizations: Literal["disabled", "all"] = "disabled"
) -> dict[str, Any]:
    config = CheckGenerationConfig(
        task=TASK,
        component="model",
        optimizations=optimizations,
        longest=POSITIONS,
        texts=4,
        read=12,
    )
    context = RecordingContext(scratch, threads=2)
    facts = dict(CHECK_GENERATION.run(config, ports, scratch, context))
    done, total, _ = context.steps[-1]
    assert done <= total
    return facts


def _judge(
    facts: dict[str, Any], arithmetic: Arithmetic = "float32", **limits: float
) -> tuple[GateResult, ...]:
    measured = Measured(
        target="cpu",
        component="model",
        stage="export",
        node="export",
        arithmetic=arithmetic,
        is_proxy=False,
        facts=facts,
        floors={},
    )
    return GENERATION.judge(measured, GenerationLimits(**limits))


def _failed(results: tuple[GateResult, ...]) -> dict[str, str]:
    """Metric -> reason of those that fail."""
    return {
        result.metric.partition(".")[2]: result.reason
        for result in results
        if not result.is_allowed
    }


METRICS = {
    *("logits.prefill", "cache.prefill", "kl", "top1_margin", "top5", "perplexity"),
    *("logits.token_by_token.itself", "cache.token_by_token.itself"),
    *("logits.chunked.itself", "cache.chunked.itself"),
    *("logits.left_padded.itself", "cache.left_padded.itself", "logits.reordered.itself"),
    *("logits.longest.itself", "logits.longest.checkpoint"),
    *("greedy.checkpoint", "greedy.itself"),
}


def test_a_good_graph_passes_and_every_case_is_there(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    facts = _measure(tiny_decoder.ports(), tmp_path)
    results = _judge(facts)
    assert not _failed(results)
    assert {result.metric.partition(".")[2] for result in results} == METRICS


def _damaged(
    tiny_decoder: TinyDecoder, directory: Path, damage: Callable[[Graph], Any]
) -> dict[str, Path]:
    graph = Graph.read(tiny_decoder.root / "export")
    damage(graph)
    directory.mkdir()
    graph.write(directory)
    return tiny_decoder.ports(directory)


DAMAGES: dict[Callable[[Graph], Any], set[str]] = {
    decoding.cache_mask_lost: {
        *("logits.left_padded.itself", "cache.left_padded.itself", "greedy.itself")
    },
    decoding.positions_shifted_by_past: {
        *("logits.token_by_token.itself", "cache.token_by_token.itself")
    },
    decoding.positions_start_anew: {"logits.longest.checkpoint", "logits.longest.itself"},
    decoding.new_entries_first: {"logits.chunked.itself", "greedy.checkpoint"},
    decoding.new_entries_first_in_result: {"cache.chunked.itself"},
    decoding.cache_heads_permuted: {"logits.token_by_token.itself", "cache.prefill"},
    decoding.key_heads_permuted: {"logits.prefill", "kl", "top1_margin", "perplexity"},
    decoding.present_is_past: {"logits.prefill"},
    decoding.cache_entries_stale: {"cache.chunked.itself"},
    decoding.past_of_first_row: {"logits.reordered.itself", "logits.left_padded.itself"},
    decoding.rope_base: {"logits.prefill"},
    decoding.head_untied: {"logits.prefill"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_fails_where_it_must(
    tiny_decoder: TinyDecoder, tmp_path: Path, damage: Callable[[Graph], Any]
) -> None:
    failed = _failed(
        _judge(_measure(_damaged(tiny_decoder, tmp_path / "damaged", damage), tmp_path))
    )
    assert DAMAGES[damage] <= set(failed)
    assert all(failed.values())


def test_no_gate_is_without_a_damage_that_fails_it() -> None:
    """`top5` is a gate only with a limit of the recipe: see the test of quantised graphs."""
    assert set().union(*DAMAGES.values()) == METRICS - {"top5"}


@pytest.mark.parametrize("seed", [1, 2])
def test_other_samples_raise_no_alarm(
    tiny_decoder: TinyDecoder, tmp_path: Path, seed: int
) -> None:
    samples = random_texts(tmp_path / "samples", seed)
    reference = write_reference(tmp_path / "reference", tiny_decoder.root / "checkpoint", samples)
    ports = tiny_decoder.ports() | {"samples": samples, "reference": reference}
    assert not _failed(_judge(_measure(ports, tmp_path)))


QUANTIZED: dict[str, tuple[AnyStage, StageConfig]] = {
    "dynamic": (QUANTIZE_DYNAMIC, QuantizeDynamicConfig()),
    "int4": (QUANTIZE_WEIGHTS, QuantizeWeightsConfig(block_size=16)),
    "int8": (QUANTIZE_WEIGHTS, QuantizeWeightsConfig(bits=8)),
}


@pytest.fixture(scope="module")
def quantized(
    tiny_decoder: TinyDecoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Name -> directory of the graph."""
    bench = Workbench(tmp_path_factory.mktemp("quantized"))
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model=tiny_decoder.root / "export")
    for name, (stage, config) in QUANTIZED.items():
        bench.run(stage, config, name, model="simplify")
    return {name: bench.root / name for name in ("simplify", *QUANTIZED)}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantised_graphs_are_held_against_themselves(
    tiny_decoder: TinyDecoder, quantized: dict[str, Path], tmp_path: Path, name: str
) -> None:
    facts = _measure(tiny_decoder.ports(quantized[name]), tmp_path, "all")
    results = _judge(facts, "quantized")
    assert not _failed(results)
    metrics = {result.metric.partition(".")[2] for result in results}
    assert ("logits.chunked.as_written" in metrics) == (name != "dynamic")
    limits = {result.metric.partition(".")[2]: result.limit for result in results}
    assert limits["perplexity"] == limits["kl"] == limits["greedy.checkpoint"] == "only measured"
    assert "perplexity" in _failed(_judge(facts, "quantized", perplexity=0.5))
    assert "kl" in _failed(_judge(facts, "quantized", kl=1e-9))
    assert "logits.prefill" in _failed(_judge(facts, "quantized", noise=1e-9))
    shares = _failed(_judge(facts, "quantized", top1=1.0, top5=1.0))
    assert set(shares) == {"top1", "top5"}


def test_a_perplexity_that_is_asked_for_and_cannot_be_measured_fails(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    """Texts of one token predict nothing."""
    ports = tiny_decoder.ports()
    ports["samples"] = random_texts(tmp_path / "samples", lengths_of=(1, 2))
    ports["reference"] = write_reference(
        tmp_path / "reference", ports["checkpoint"], ports["samples"]
    )
    facts = _measure(ports, tmp_path)
    assert not _failed(_judge(facts))
    failed = _failed(_judge(facts, perplexity=1.05))
    assert failed.keys() == {"perplexity"}
    assert "no evaluation text has a second token" in failed["perplexity"]


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    "damage", [decoding.positions_shifted_by_past, decoding.cache_entries_stale]
)
def test_faults_of_a_cache_do_not_hide_behind_quantisation(
    tiny_decoder: TinyDecoder,
    quantized: dict[str, Path],
    tmp_path: Path,
    name: str,
    damage: Callable[[Graph], Any],
) -> None:
    graph = Graph.read(quantized[name])
    damage(graph)
    (tmp_path / "damaged").mkdir()
    graph.write(tmp_path / "damaged")
    facts = _measure(tiny_decoder.ports(tmp_path / "damaged"), tmp_path, "all")
    failed = _failed(_judge(facts, "quantized"))
    assert "cache.chunked.itself" in failed or "cache.chunked.as_written" in failed


def test_a_near_tie_is_no_error_and_a_clear_choice_is(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    facts = _measure(tiny_decoder.ports(), tmp_path)
    row = next(row for row in facts["greedy"] if row["against"] == "torch")
    row |= {"agreed": 3, "token": 7, "expected": 8, "margin": 1e-5}
    assert not _failed(_judge(facts))
    row["margin"] = 1e-2
    (reason,) = _failed(_judge(facts)).values()
    assert "is continued by token 7 behind 3 equal ones, the checkpoint writes 8" in reason
    row["margin"] = None
    facts["divergence"]["margin_max"] = 1e-2
    assert set(_failed(_judge(facts))) == {"top1_margin"}


def test_only_decoders_are_asked() -> None:
    from pipeline.checks.base import Subject
    from pipeline.tasks import find_task

    subject = Subject(
        component="model",
        links=(),
        samples=None,  # type: ignore[arg-type]
        probes=None,  # type: ignore[arg-type]
        reference=None,  # type: ignore[arg-type]
        task=find_task("feature-extraction"),
        profile={"sequence": (1, 8, 16)},
    )
    assert not list(GENERATION.plan(subject, GenerationLimits()))
