"""The check of an encoder with its decoder, on real graphs of a tiny pair: good ones pass, damage fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.checks.base import Measured
from pipeline.checks.seq2seq import SEQ2SEQ, Seq2SeqLimits
from pipeline.stages.check_seq2seq import CHECK_SEQ2SEQ, CheckSeq2SeqConfig
from pipeline.stages.decoder_samples import DECODER_SAMPLES, DecoderSamplesConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.mutants.faults import pairs as faults
from tests.mutants.surgery import Graph
from tests.pairs import PAD, TEXTS, build_pair, write_pairs
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.stages.base import AnyStage, StageConfig

LONGEST = 20


@dataclass(frozen=True)
class TinyPair:
    """What the stages made below a root."""

    root: Path

    def run(self, stage: AnyStage, config: StageConfig, name: str, **ports: str) -> dict[str, Any]:
        output = self.root / name
        output.mkdir(parents=True)
        inputs = {port: self.root / folder for port, folder in ports.items()}
        context = RecordingContext(self.root, threads=2)
        return dict(stage.run(config, inputs, output, context))

    def ports(self, **changes: Path) -> dict[str, Path]:
        names = {
            "model": "decoder",
            "encoder": "encoder",
            "checkpoint": "checkpoint",
            "samples": "decoder_samples",
            "sources": "samples",
            "reference": "reference",
        }
        return {port: self.root / name for port, name in names.items()} | changes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    made = TinyPair(tmp_path_factory.mktemp("pair"))
    build_pair(made.root / "checkpoint", "bart", encoder_layers=1)
    (made.root / "data").mkdir()
    write_pairs(made.root / "data/pairs.jsonl")
    samples = SamplesConfig(
        source="pairs.jsonl",
        kind="jsonl",
        task=TEXTS,
        samples=6,
        seed=0,
        max_length=LONGEST,
        start=PAD,
    )
    made.run(SAMPLES, samples, "samples", tokenizer="checkpoint", data="data")
    made.run(
        DECODER_SAMPLES,
        DecoderSamplesConfig(task=TEXTS),
        "decoder_samples",
        checkpoint="checkpoint",
        samples="samples",
    )
    made.run(
        REFERENCE,
        ReferenceConfig(task=TEXTS, component="decoder"),
        "reference",
        checkpoint="checkpoint",
        samples="decoder_samples",
    )
    for component in ("encoder", "decoder"):
        config = ExportConfig(task=TEXTS, component=component)
        made.run(EXPORT, config, component, checkpoint="checkpoint")
    return made


def _measure(ports: dict[str, Path], scratch: Path, optimizations: Any = "disabled") -> Any:
    config = CheckSeq2SeqConfig(
        task=TEXTS, component="decoder", optimizations=optimizations, longest=LONGEST, tokens=8
    )
    scratch.mkdir()
    context = RecordingContext(scratch, threads=2)
    facts = dict(CHECK_SEQ2SEQ.run(config, ports, scratch, context))
    assert all(done <= total for done, total, _ in context.steps)
    return facts


def _judge(facts: dict[str, Any], arithmetic: Arithmetic = "float32") -> dict[str, str]:
    """Metric -> reason of those that fail, empty for those that pass."""
    measured = Measured(
        target="cpu",
        component="decoder",
        stage="export",
        node="export.decoder",
        arithmetic=arithmetic,
        is_proxy=False,
        facts=facts,
        floors={},
    )
    results = SEQ2SEQ.judge(measured, Seq2SeqLimits())
    assert {result.gate for result in results} == {"seq2seq"}
    return {result.metric.removeprefix("decoder.export."): result.reason for result in results}


METRICS = {
    *("logits.prefill", "cache.prefill", "kl", "top1_margin", "top5", "perplexity"),
    *("logits.token_by_token.itself", "cache.token_by_token.itself"),
    *("logits.chunked.itself", "cache.chunked.itself"),
    *("logits.padded_sources.itself", "cache.padded_sources.itself"),
    *("logits.reordered.itself", "logits.longest.itself", "logits.longest.checkpoint"),
    *("greedy.checkpoint", "greedy.itself"),
}


def test_good_graphs_pass_and_every_case_is_there(pair: TinyPair, tmp_path: Path) -> None:
    judged = _judge(_measure(pair.ports(), tmp_path / "scratch"))
    assert set(judged) == METRICS
    assert not any(judged.values())


DAMAGES: dict[Callable[[Graph], None], tuple[str, set[str]]] = {
    faults.source_mask_lost: (
        "model",
        {"logits.padded_sources.itself", "cache.padded_sources.itself", "greedy.itself"},
    ),
    faults.source_of_first_row: ("encoder", {"logits.padded_sources.itself"}),
    faults.source_stale: (
        "encoder",
        {
            "logits.prefill",
            "cache.prefill",
            "kl",
            "top1_margin",
            "perplexity",
            "greedy.checkpoint",
        },
    ),
    faults.source_layers_swapped: ("model", {"logits.prefill"}),
    faults.own_entries_first: ("model", {"cache.chunked.itself", "cache.token_by_token.itself"}),
    faults.own_past_of_first_row: ("model", {"logits.reordered.itself"}),
    faults.own_positions_shifted: (
        "model",
        {
            *("logits.token_by_token.itself", "logits.chunked.itself"),
            *("logits.longest.itself", "logits.longest.checkpoint"),
        },
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_fails_where_it_must(
    pair: TinyPair, tmp_path: Path, damage: Callable[[Graph], None]
) -> None:
    port, metrics = DAMAGES[damage]
    graph = Graph.read(pair.ports()[port])
    damage(graph)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    graph.write(damaged)
    failed = _judge(_measure(pair.ports(**{port: damaged}), tmp_path / "scratch"))
    assert metrics <= {metric for metric, reason in failed.items() if reason}


def test_no_gate_is_without_a_damage_that_fails_it() -> None:
    """`top5` is a gate only with a limit of the recipe."""
    named = (metrics for _, metrics in DAMAGES.values())
    assert set().union(*named) == METRICS - {"top5"}


def test_eight_bits_are_held_to_their_own_tolerance(pair: TinyPair, tmp_path: Path) -> None:
    ports = {}
    for port, component in (("encoder", "encoder"), ("model", "decoder")):
        pair.run(SIMPLIFY, SimplifyConfig(), f"simple-{component}", model=component)
        quantize = QuantizeDynamicConfig()
        pair.run(QUANTIZE_DYNAMIC, quantize, f"int8-{component}", model=f"simple-{component}")
        ports[port] = pair.root / f"int8-{component}"
    judged = _judge(_measure(pair.ports(**ports), tmp_path / "scratch", "all"), "quantized")
    assert not judged["logits.chunked.itself"]
    assert not judged["logits.padded_sources.itself"]
    assert not judged["cache.token_by_token.itself"]


def test_graphs_of_different_models_are_no_pair(pair: TinyPair, tmp_path: Path) -> None:
    graph = Graph.read(pair.root / "encoder")
    kept = [value for value in graph.model.graph.output if ".1.encoder" not in value.name]
    del graph.model.graph.output[:]
    graph.model.graph.output.extend(kept)
    shorter = tmp_path / "shorter"
    shorter.mkdir()
    graph.write(shorter)
    facts = _measure(pair.ports(encoder=shorter), tmp_path / "scratch")
    assert "past_key_values.1.encoder.key" in facts["problems"][0]
    assert _judge(facts)["problems"]
