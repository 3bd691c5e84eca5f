"""Decoders with `fuse: {last_logits: true}` for GenAI and transformers.js."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pipeline.bundle.genai import export_genai
from pipeline.bundle.transformers_js import export_transformers_js
from pipeline.graph.decoder_fusions.last_logits import INPUT
from pipeline.graph.kept_logits import ask_how_many
from pipeline.stages.fuse import FUSE, FuseConfig
from tests.bundle.conftest import remake
from tests.stages.context import RecordingContext


@pytest.fixture(scope="module")
def few_logits(decoder_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")

    def fuse(folder: Path, document: dict[str, Any]) -> None:
        (root / "fused").mkdir()
        ports = {"model": folder / "cpu-fp32"}
        FUSE.run(FuseConfig(last_logits=True), ports, root / "fused", RecordingContext(root))
        shutil.copyfile(root / "fused/model.onnx", folder / "cpu-fp32/model.onnx")
        document["recipe"]["targets"].pop()
        shutil.rmtree(folder / "cpu-int4")

    return remake(decoder_artifact, root / "artifact", fuse)


def test_genai_generates_our_tokens_and_a_note_says_what_it_does_not_use(
    few_logits: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_genai")
    made = export_genai(few_logits, tmp_path / "made")
    assert "the same 24 tokens" in made.models[0].trial
    (note,) = made.notes
    assert f"GenAI does not feed `{INPUT}`" in note


def test_transformers_js_is_asked_for_a_scalar(few_logits: Path, tmp_path: Path) -> None:
    made = export_transformers_js(few_logits, tmp_path / "made")
    path = made.directory / made.models[0].path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes[INPUT] == []
    feeds: dict[str, Any] = {
        name: np.zeros([1, shape[1], 0, shape[3]], np.float32)
        for name, shape in shapes.items()
        if name.startswith("past_key_values.")
    }
    feeds["input_ids"] = np.array([[5, 6, 7]])
    feeds |= {"attention_mask": np.ones((1, 3), np.int64), "position_ids": np.array([[0, 1, 2]])}
    everything, last = (
        session.run(["logits"], feeds | {INPUT: np.array(number)})[0] for number in (0, 1)
    )
    assert everything.shape[1] == 3
    np.testing.assert_allclose(last, everything[:, -1:], rtol=1e-4, atol=1e-6)


def test_a_graph_without_that_input_stays_as_it_is(decoder_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(decoder_artifact / "cpu-fp32/model.onnx", tmp_path / "model.onnx"))
    before = copy.read_bytes()
    assert not ask_how_many(copy)
    assert copy.read_bytes() == before
