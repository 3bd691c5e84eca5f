"""The check of the export: good ones hold the checkpoint's numbers, and each damage shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.large_llama import SIZES, write_large_llama
from pipeline.checks.base import Measured
from pipeline.checks.export import EXPORT_CHECK, ExportLimits
from pipeline.graph.files import load_graph_only, save_ir_model
from pipeline.graph.stored_weights import use_stored_weights
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE
from pipeline.stages.check_export import CHECK_EXPORT, CheckExportConfig
from pipeline.stages.export import EXPORT, ExportConfig
from tests.mutants.bench import Context
from tests.mutants.surgery import Graph

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from pipeline.parity.types import GateResult


@pytest.fixture(scope="module")
def exported(sentence_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export")
    config = ExportConfig(task="feature-extraction", component="model")
    EXPORT.run(config, {"checkpoint": sentence_encoder}, output, Context(output))
    return output


def _measure(model: Path, checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    inputs = {"model": model, "checkpoint": checkpoint}
    return dict(CHECK_EXPORT.run(CheckExportConfig(opset=20), inputs, tmp_path, Context(tmp_path)))


def _failed(facts: dict[str, Any], limits: ExportLimits) -> tuple[GateResult, ...]:
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
    results = EXPORT_CHECK.judge(measured, limits)
    assert len(results) == 2
    return tuple(result for result in results if not result.is_allowed)


def test_a_good_export_has_the_numbers_of_its_checkpoint(
    exported: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    facts = _measure(exported, sentence_encoder, tmp_path)
    assert facts["parameters"]["compared"] > 30
    assert facts["parameters"]["without_counterpart"] == []
    assert not _failed(facts, ExportLimits())


def test_one_number_that_differs_is_found(
    exported: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    graph = Graph.read(exported)
    (name,) = graph.find("word_embeddings.weight")

    def moved(table: np.ndarray) -> np.ndarray:
        table[7, 3] = np.nextafter(table[7, 3], np.float32(9))
        return table

    graph.change(name, moved)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    graph.write(damaged)
    facts = _measure(damaged, sentence_encoder, tmp_path)
    (result,) = _failed(facts, ExportLimits())
    assert result.metric == "export.changed_parameters"
    assert result.layer == name
    assert "1 of " in result.reason
    assert not _failed(facts, ExportLimits(changed_parameters=None))


def test_weights_outside_are_compared_turned_and_in_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of a large decoder is written transposed, under another name, and as it is stored."""
    monkeypatch.setattr("pipeline.stages.export.INLINE_LIMIT_BYTES", 0)
    monkeypatch.setitem(save_ir_model.__kwdefaults__, "inline_limit_bytes", 0)
    monkeypatch.setitem(use_stored_weights.__kwdefaults__, "limit", 0)
    source = write_large_llama(tmp_path / "llama", SIZES["tiny"], dtype="bfloat16")
    model = tmp_path / "model"
    model.mkdir()
    config = ExportConfig(task="text-generation", component="model")
    EXPORT.run(config, {"checkpoint": source}, model, Context(tmp_path))
    graph = load_graph_only(model / MODEL_FILE).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    (head,) = (t for t in stored.values() if list(t.dims) == [64, 320])
    assert "." not in head.name
    assert head.data_type == head.BFLOAT16
    facts = _measure(model, source, tmp_path)
    assert facts["parameters"]["compared"] >= 2
    assert not _failed(facts, ExportLimits())
    place = next(int(entry.value) for entry in head.external_data if entry.key == "offset")
    with (model / EXTERNAL_DATA_FILE).open("r+b") as file:
        file.seek(place)
        (first,) = file.read(1)
        file.seek(place)
        file.write(bytes([first ^ 1]))
    (result,) = _failed(_measure(model, source, tmp_path), ExportLimits())
    assert result.metric == "export.changed_parameters"
    assert "1 of 20,480 numbers" in result.reason


def test_another_opset_than_was_asked_for_is_found(
    exported: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    graph = Graph.read(exported)
    graph.model.opset_import[0].version = 18
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    graph.write(damaged)
    (result,) = _failed(_measure(damaged, sentence_encoder, tmp_path), ExportLimits())
    assert result.reason == "the graph is made for opset 18, not 20"


def test_a_checkpoint_in_half_precision_is_compared_as_it_is_computed_with(
    exported: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    """An export computes in float32 whatever the checkpoint is stored in."""
    checkpoint = tmp_path / "half"
    checkpoint.mkdir()
    tensors = load_file(sentence_encoder / "model.safetensors")
    save_file(
        {name: tensor.astype(np.float16) for name, tensor in tensors.items()},
        checkpoint / "model.safetensors",
    )
    graph = Graph.read(exported)
    for name, array in list(graph.initializers()):
        if array.dtype == np.float32 and "." in name:
            graph.put(name, array.astype(np.float16).astype(np.float32))
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    graph.write(rounded)
    assert not _failed(_measure(rounded, checkpoint, tmp_path), ExportLimits())
    assert _failed(_measure(exported, checkpoint, tmp_path), ExportLimits())


def test_what_the_checkpoint_does_not_know_is_named_and_not_judged(
    exported: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    graph = Graph.read(exported)
    graph.put("model.made.while.loading", np.ones((2, 3), np.float32))
    more = tmp_path / "more"
    more.mkdir()
    graph.write(more)
    facts = _measure(more, sentence_encoder, tmp_path)
    assert facts["parameters"]["without_counterpart"] == ["model.made.while.loading"]
    assert not _failed(facts, ExportLimits())
