"""One product for Q, K and V: the same numbers, fewer layers, and nothing where a condition fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.attention_blocks import find_attention_blocks
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.merged_heads import merge_heads
from tests.engines.graphs import HIDDEN, PROFILE, encoder, model, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 16


def _projections(heads: tuple[int, ...] = (4, 2, 2), *, biased: str = "qv") -> onnx.ModelProto:
    """Q, K (turned) and V of one tensor, as they go into attention."""
    nodes, tensors = [], []
    for letter, count in zip("qkv", heads, strict=True):
        width = count * SIZE
        tensors += [
            weights(f"w_{letter}", (HIDDEN, width), np.float32),
            numpy_helper.from_array(np.linspace(-1, 1, width, dtype=np.float32), f"b_{letter}"),
            numpy_helper.from_array(np.array([0, 0, count, SIZE], np.int64), f"shape_{letter}"),
        ]
        last = f"m_{letter}"
        nodes.append(helper.make_node("MatMul", ["x", f"w_{letter}"], [last], name=last))
        if letter in biased:
            nodes.append(helper.make_node("Add", [f"b_{letter}", last], [f"a_{letter}"]))
            last = f"a_{letter}"
        perm = [0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("Reshape", [last, f"shape_{letter}"], [f"r_{letter}"]),
            helper.make_node("Transpose", [f"r_{letter}"], [f"t_{letter}"], perm=perm),
            helper.make_node("Neg", [f"t_{letter}"], [letter], name=f"read_{letter}"),
        ]
    kind = int(TensorProto.FLOAT)
    outputs: dict[str, tuple[int, list[int | str | None]]] = {
        "q": (kind, ["batch", heads[0], "length", SIZE]),
        "k": (kind, ["batch", heads[1], SIZE, "length"]),
        "v": (kind, ["batch", heads[2], "length", SIZE]),
    }
    source: dict[str, tuple[int, list[int | str | None]]] = {
        "x": (kind, ["batch", "length", HIDDEN])
    }
    return model(nodes, tensors, inputs=source, outputs=outputs)


def _merged(
    graph: onnx.ModelProto, folder: Path
) -> tuple[tuple[tuple[str, ...], ...], onnx.ModelProto]:
    onnx.save(graph, folder / "model.onnx")
    loaded = load_ir_model(folder / "model.onnx")
    names = merge_heads(loaded)
    (folder / "out").mkdir()
    written = onnx.load(save_ir_model(loaded, folder / "out"))
    onnx.checker.check_model(written)
    return names, written


def _run(graph: onnx.ModelProto, batch: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(batch * 100 + length)
    x = rng.standard_normal((batch, length, HIDDEN)).astype(np.float32)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, {"x": x})]


@pytest.mark.parametrize("biased", ["qkv", "qv", ""])
def test_three_products_become_one_with_the_same_results(tmp_path: Path, biased: str) -> None:
    graph = _projections(biased=biased)
    names, merged = _merged(graph, tmp_path)
    assert names == (("m_q", "m_k", "m_v"),)
    products = [node for node in merged.graph.node if node.op_type == "MatMul"]
    assert [node.name for node in products] == ["m_q_and_m_k_and_m_v"]
    assert sum(node.op_type == "Add" for node in merged.graph.node) == bool(biased)
    assert not {t.name for t in merged.graph.initializer} & {"w_q", "w_k", "w_v"}
    for batch, length in ((1, 1), (3, 5)):
        for before, after in zip(
            _run(graph, batch, length), _run(merged, batch, length), strict=True
        ):
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_attention_of_an_encoder_is_still_found(tmp_path: Path) -> None:
    graph = encoder(2, dtype=np.float32)
    names, merged = _merged(graph, tmp_path)
    assert [len(each) for each in names] == [3, 3]
    assert len(find_attention_blocks(merged.graph)) == 2


def _also_read(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info("m_k", TensorProto.FLOAT, [None] * 3))


def _shared_weight(graph: onnx.GraphProto) -> None:
    graph.node[-1].op_type = "MatMul"
    graph.node[-1].input[:] = ["x", "w_v"]
    graph.output[2].CopyFrom(helper.make_tensor_value_info("v", TensorProto.FLOAT, [None] * 3))


def _other_order(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.output[0] == "t_v":
            node.attribute[0].ints[:] = [2, 0, 1, 3]
    graph.output[2].CopyFrom(helper.make_tensor_value_info("v", TensorProto.FLOAT, [None] * 4))


def _heads_on_the_length(graph: onnx.GraphProto) -> None:
    """(batch, length, 32) -> (length, batch, 2, 16) is the same only for one text."""
    for tensor in graph.initializer:
        if tensor.name == "shape_v":
            shape = numpy_helper.from_array(np.array([-1, 1, 2, SIZE], np.int64), "shape_v")
            tensor.CopyFrom(shape)
    graph.output[2].CopyFrom(helper.make_tensor_value_info("v", TensorProto.FLOAT, [None] * 4))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (_also_read, ("m_q", "m_v")),
        (_shared_weight, ("m_q", "m_k")),
        (_other_order, ("m_q", "m_k")),
        (_heads_on_the_length, ("m_q", "m_k")),
    ],
)
def test_a_product_that_breaks_a_condition_stays(
    tmp_path: Path, change: Callable[[onnx.GraphProto], None], left: tuple[str, ...]
) -> None:
    graph = _projections()
    change(graph.graph)
    names, merged = _merged(graph, tmp_path)
    assert names == (left,)
    for before, after in zip(_run(graph, 2, 3), _run(merged, 2, 3), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_heads_of_another_size_stay(tmp_path: Path) -> None:
    graph = _projections((4, 4, 4))
    for tensor in graph.graph.initializer:
        if tensor.name in {"shape_k", "shape_v"}:
            size = 8 if tensor.name == "shape_k" else 32
            shape = np.array([0, 0, 4 * SIZE // size, size], np.int64)
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    for output in graph.graph.output:
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [None] * 4))
    assert _merged(graph, tmp_path)[0] == ()


def test_an_engine_of_it_has_two_layers_fewer_for_each_attention(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from pipeline.stages.engine import ENGINE, EngineConfig
    from tests.stages.context import RecordingContext

    graph = encoder(2)
    onnx.save(graph, tmp_path / "model.onnx")
    merged = load_ir_model(tmp_path / "model.onnx")
    merge_heads(merged)
    counts: list[Any] = []
    for name in ("plain", "merged"):
        for part in ("in", "out", "scratch"):
            (tmp_path / name / part).mkdir(parents=True)
        source = tmp_path / name / "in"
        if name == "plain":
            onnx.save(graph, source / "model.onnx")
        else:
            save_ir_model(merged, source)
        config = EngineConfig(compute_capability="sm89", precision="fp16", profiles=(PROFILE,))
        context = RecordingContext(tmp_path / name / "scratch")
        facts = ENGINE.run(config, {"model": source}, tmp_path / name / "out", context)
        counts.append((facts["layers"], facts["fused_attention"]))
    (plain, fused), (fewer, still_fused) = counts
    assert fused == still_fused
    assert fewer <= plain - 4
