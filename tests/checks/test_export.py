"""The check of the export: good ones hold the checkpoint's numbers, and each damage shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.checks.base import Measured
from pipeline.checks.export import EXPORT_CHECK, ExportLimits
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
