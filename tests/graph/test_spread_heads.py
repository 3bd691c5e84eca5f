"""Attention with shared heads and the form without give the same outputs and the same cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pipeline.graph.spread_heads import spread_shared_heads

BATCH, SEQUENCE, PAST, WIDTH = 2, 3, 4, 8


def _write(path: Path, queries: int, shared: int) -> Path:
    def value(name: str, heads: int, tokens: str) -> onnx.ValueInfoProto:
        shape = ["batch", heads, tokens, WIDTH]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    names = ("k", "v", "past_k", "past_v")
    inputs = [value("q", queries, "sequence")]
    inputs += [value(name, shared, "past" if "past" in name else "sequence") for name in names]
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["sequence", "total"])
    outputs = [value("y", queries, "sequence")]
    outputs += [value(name, shared, "total") for name in ("present_k", "present_v")]
    node = helper.make_node(
        "Attention",
        ["q", "k", "v", "mask", "past_k", "past_v"],
        ["y", "present_k", "present_v"],
        scale=0.5,
    )
    graph = helper.make_graph([node], "g", [*inputs, mask], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return path


def _run(path: Path, shared: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    feed = {
        "q": random(BATCH, 4, SEQUENCE, WIDTH),
        "k": random(BATCH, shared, SEQUENCE, WIDTH),
        "v": random(BATCH, shared, SEQUENCE, WIDTH),
        "past_k": random(BATCH, shared, PAST, WIDTH),
        "past_v": random(BATCH, shared, PAST, WIDTH),
        "mask": random(SEQUENCE, PAST + SEQUENCE),
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["y", "present_k", "present_v"], feed)


@pytest.mark.parametrize("shared", [1, 2])
def test_outputs_and_cache_stay_the_same(tmp_path: Path, shared: int) -> None:
    path = _write(tmp_path / "model.onnx", 4, shared)
    (tmp_path / "made").mkdir()
    made = spread_shared_heads(path, tmp_path / "made")
    assert made != path
    names = [tensor.name for tensor in onnx.load(made).graph.output]
    assert names == ["y", "present_k", "present_v"]
    for own, other in zip(_run(path, shared), _run(made, shared), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_a_graph_without_shared_heads_is_left_alone(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.onnx", 4, 4)
    assert spread_shared_heads(path, tmp_path / "nowhere") == path
