"""The check of generation on decoders with a static cache: good ones pass, each damage fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.data.decoder_inputs import completed, is_cache
from pipeline.data.empty_caches import empty_caches
from pipeline.data.sample_set import (
    InputSpec,
    SampleEntry,
    SampleIndex,
    load_samples,
    save_samples,
)
from pipeline.stages.compare_layers import COMPARE_LAYERS, CompareLayersConfig
from pipeline.stages.simplify_and_fuse import SIMPLIFY_AND_FUSE, SimplifyAndFuseConfig
from pipeline.stages.static_cache import STATIC_CACHE, StaticCacheConfig
from tests.checks.test_generation import METRICS, _failed, _judge, _measure
from tests.decoders import POSITIONS
from tests.mutants.surgery import Graph
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.decoders import TinyDecoder


@pytest.fixture(scope="module")
def static(tiny_decoder: TinyDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the export with room for the longest text and no more."""
    root = tmp_path_factory.mktemp("static")
    ports = {"model": tiny_decoder.root / "export"}
    (root / "model").mkdir()
    config = StaticCacheConfig(length=POSITIONS)
    STATIC_CACHE.run(config, ports, root / "model", RecordingContext(root))
    return root / "model"


def test_a_static_cache_passes_and_every_case_is_there(
    tiny_decoder: TinyDecoder, static: Path, tmp_path: Path
) -> None:
    results = _judge(_measure(tiny_decoder.ports(static), tmp_path, "all"))
    assert not _failed(results)
    assert {result.metric.partition(".")[2] for result in results} == METRICS


def written_at_the_wrong_place(graph: Graph) -> None:
    """One place too far: a slot is left out, and the last token is not seen."""
    (starts,) = {node.input[2] for node in graph.all("TensorScatter")}
    _start_at(graph, starts, graph.insert("Add", [starts, graph.put("one_place", _one())]))


def written_at_the_beginning(graph: Graph) -> None:
    """Every step overwrites the tokens of the first."""
    (starts,) = {node.input[2] for node in graph.all("TensorScatter")}
    _start_at(graph, starts, graph.insert("Sub", [starts, starts]))


def _start_at(graph: Graph, starts: str, moved: str) -> None:
    maker = graph.maker(moved)
    assert maker is not None
    graph.redirect(starts, moved, but=[maker])


def present_stays_the_past(graph: Graph) -> None:
    """Attention sees the new tokens, and the cache that is handed on does not have them."""
    for name in [name for name in graph.outputs if name.startswith("present.")]:
        node = graph.maker(name)
        assert node is not None
        inner, past = f"{name}_inner", node.input[0]
        graph.redirect(name, inner)
        node.output[0] = inner
        kept = graph.maker(name)
        assert kept is not None
        kept.input[0] = past


def cut_too_late(graph: Graph) -> None:
    """Keys of one layer have a token more than there are: what was left there by another text."""
    for node in graph.all("Slice"):
        if node.input[0].startswith("present."):
            node.input[2] = graph.insert("Add", [node.input[2], graph.put("one_place", _one())])
            return


PORTS = {"model": "static", "before": "fused", "samples": "samples"}


def _one() -> Any:
    return np.ones(1, np.int64)


DAMAGES: dict[Callable[[Graph], Any], str] = {
    written_at_the_wrong_place: "logits.prefill",
    written_at_the_beginning: "logits.token_by_token.itself",
    present_stays_the_past: "logits.token_by_token.itself",
    cut_too_late: "logits.prefill",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_static_cache_fails(
    tiny_decoder: TinyDecoder, static: Path, tmp_path: Path, damage: Callable[[Graph], Any]
) -> None:
    graph = Graph.read(static)
    damage(graph)
    (tmp_path / "damaged").mkdir()
    graph.write(tmp_path / "damaged")
    failed = _failed(_judge(_measure(tiny_decoder.ports(tmp_path / "damaged"), tmp_path)))
    assert DAMAGES[damage] in failed
    assert all(failed.values())


def test_its_layers_are_those_of_the_graph_it_was_made_from(
    tiny_decoder: TinyDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of the graph are run alone; of a fused one some take a cache and no mask."""
    monkeypatch.setattr("pipeline.parity.layer_comparison.GROUP_BYTES", 1)  # many parts
    for name in ("fused", "static"):
        (tmp_path / name).mkdir()
    context = RecordingContext(tmp_path)
    ports = {"model": tiny_decoder.root / "export"}
    SIMPLIFY_AND_FUSE.run(SimplifyAndFuseConfig(), ports, tmp_path / "fused", context)
    config, ports = StaticCacheConfig(length=POSITIONS), {"model": tmp_path / "fused"}
    STATIC_CACHE.run(config, ports, tmp_path / "static", context)
    facts = _compare_layers(tiny_decoder, tmp_path)
    assert facts["samples"] == 2
    assert "warnings" not in facts
    assert facts["first"] is None


def _compare_layers(decoder: TinyDecoder, root: Path) -> dict[str, Any]:
    (root / "samples").mkdir()
    texts = load_samples(decoder.root / "samples").read([0, 1])
    samples = []
    for text in texts:
        tokens = {
            "input_ids": text["input_ids"],
            "attention_mask": np.ones_like(text["input_ids"]),
        }
        samples.append(completed(tokens, empty_caches(decoder.root / "checkpoint")))
    index = SampleIndex(
        source="random",
        use="evaluation",
        seed=0,
        max_length=POSITIONS,
        inputs={
            name: InputSpec(
                dtype="float32" if is_cache(name) else "int64",
                axes=(None, "past_sequence", None) if is_cache(name) else ("sequence",),
            )
            for name in samples[0]
        },
        samples=tuple(
            SampleEntry(index=number, text="", extents={"sequence": len(sample["input_ids"])})
            for number, sample in enumerate(samples)
        ),
    )
    save_samples(index, samples, root / "samples")
    config = CompareLayersConfig(against="fuse", arithmetic="float32", optimizations="disabled")
    ports = {name: root / folder for name, folder in PORTS.items()}
    ports["export"] = decoder.root / "export"
    return dict(COMPARE_LAYERS.run(config, ports, root / "out", RecordingContext(root)))
