"""Graphs with weights in a file of their own are edited and written without reading them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pipeline.graph.files import load_graph_only, load_ir_model, load_model, save_ir_model
from pipeline.graph.large_weights import (
    LARGE_BYTES,
    edit_without_weights,
    release_weight,
    turn_weights,
    turned,
)
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.graph.models import run
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

ROWS, WIDTH = 150, 128
"""A table of more than `LARGE_BYTES`."""


def tied_model() -> onnx.ModelProto:
    """Rows of a table, a product with a square, and a product with the table again, as tied heads have.

    The square is added to a constant first: something to fold. One weight is there twice, transposed
    in the default order and by `perm`.
    """
    generator = np.random.default_rng(0)
    table = generator.standard_normal((ROWS, WIDTH)).astype(np.float32)
    square = generator.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    cube = generator.standard_normal((2, WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("Transpose", ["square"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["mixed"]),
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Mul", ["mixed", "two"], ["doubled"]),
        helper.make_node("Transpose", ["cube"], ["cube_turned"], perm=[1, 2, 0]),
        helper.make_node("Gather", ["cube_turned", "zero"], ["slice"], axis=2),
        helper.make_node("MatMul", ["doubled", "slice"], ["third"]),
        helper.make_node("Transpose", ["table"], ["head"]),
        helper.make_node("MatMul", ["third", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", ROWS])],
        [
            onnx.numpy_helper.from_array(table, "table"),
            onnx.numpy_helper.from_array(square, "square"),
            onnx.numpy_helper.from_array(cube, "cube"),
            onnx.numpy_helper.from_array(np.float32([0.5]), "one"),
            onnx.numpy_helper.from_array(np.int64(0), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "given").mkdir()
    assert ROWS * WIDTH * 4 > LARGE_BYTES
    model = ir.serde.deserialize_model(tied_model())
    return save_ir_model(model, tmp_path / "given", inline_limit_bytes=0)


FEEDS = {"ids": np.array([[3, 1, 149], [0, 2, 2]], dtype=np.int64)}


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_simplifying_gives_the_graph_that_it_gives_with_weights_inside(
    outside: Path, tmp_path: Path, tool: str
) -> None:
    onnx.save_model(tied_model(), tmp_path / "model.onnx")
    graphs = []
    for source in (outside.parent, tmp_path):
        out = tmp_path / f"out{len(graphs)}"
        out.mkdir()
        config = SimplifyConfig.model_validate({"tool": tool})
        SIMPLIFY.run(config, {"model": source}, out, RecordingContext(tmp_path))
        np.testing.assert_allclose(
            run(out / "model.onnx", FEEDS)[0], run(outside, FEEDS)[0], rtol=1e-5, atol=1e-3
        )
        graphs.append(load_model(out / "model.onnx").graph)
    assert "Transpose" not in [node.op_type for node in graphs[0].node]
    ours, theirs = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for graph in graphs
    )
    assert [value.name for value in graphs[0].input] == ["ids"]
    # With the names that folding gives; onnxslim leaves what is read elsewhere as it is.
    for name in ("table", "turned", "head") if tool == "onnxsim" else ("table", "turned"):
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert "square" not in ours


def test_a_tool_is_shown_no_large_weight(outside: Path) -> None:
    seen = []

    def edit(shown: onnx.ModelProto) -> onnx.ModelProto:
        seen.append(shown.ByteSize())
        return shown

    edited = edit_without_weights(load_ir_model(outside), edit)
    assert seen[0] < 4000
    assert set(edited.graph.initializers) == {
        "table",
        "turned",
        "cube_turned",
        "head",
        "one",
        "zero",
    }
    table = edited.graph.initializers["table"].const_value
    assert table is not None
    release_weight(table)
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in tied_model().graph.initializer}
    np.testing.assert_array_equal(table.numpy(), expected["table"])


def test_weights_that_were_outside_are_written_inside_when_they_fit(
    outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    path = save_ir_model(load_ir_model(outside), tmp_path / "small")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert not any(tensor.external_data for tensor in load_graph_only(path).graph.initializer)
    np.testing.assert_array_equal(run(path, FEEDS)[0], run(outside, FEEDS)[0])


def test_weights_are_copied_from_file_to_file(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    model = load_ir_model(outside)
    path = save_ir_model(model, tmp_path / "copy", inline_limit_bytes=0)
    assert all(  # none of them was mapped for it
        value.const_value.raw is None
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    )
    given = outside.with_name("model.onnx_data")
    assert path.with_name("model.onnx_data").read_bytes() == given.read_bytes()


def test_weights_are_turned_while_they_are_written_unless_others_read_them(
    outside: Path, tmp_path: Path
) -> None:
    """So that no stage after this one has to; a table that is also a head is stored once."""
    (tmp_path / "turned").mkdir()
    model = load_ir_model(outside)
    turn_weights(model)
    assert [node.op_type for node in model.graph].count("Transpose") == 1
    assert set(model.graph.initializers) == {"table", "turned", "cube_turned", "one", "zero"}
    path = save_ir_model(model, tmp_path / "turned", inline_limit_bytes=0)
    sizes = [file.with_name("model.onnx_data").stat().st_size for file in (path, outside)]
    assert sizes[0] == sizes[1]
    np.testing.assert_array_equal(run(path, FEEDS)[0], run(outside, FEEDS)[0])


@pytest.mark.parametrize("order", [(1, 0), (0, 1), (2, 0, 1), (0,)])
def test_a_turned_copy_has_every_number_in_its_place(order: tuple[int, ...]) -> None:
    shape = (3, 200, 130)[: len(order)] if len(order) > 2 else (200, 131)[: len(order)]
    view = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).transpose(order)
    copy = turned(view)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, view)
