from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.small_masks import shrink_masks
from tests.engines.graphs import model

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = ["batch", 1, "sequence", "sequence"]


def _masked(
    *,
    limit: int = 0,
    start: int = 0,
    step: int = 1,
    reader: str = "Add",
    scores: tuple[int | str | None, ...] = ("batch", 2, "sequence", "sequence"),
    fill: tuple[float, ...] = (-1e4,),
    has_rows: bool = True,
) -> onnx.ModelProto:
    """Scores plus a mask of tokens, written out for every row as exporters do."""
    node = helper.make_node
    tensors = [
        numpy_helper.from_array(np.array(value, dtype), name)
        for name, value, dtype in (
            ("limit", limit, np.int64),
            ("start", start, np.int64),
            ("step", step, np.int64),
            ("row_axes", [0, 1, 3], np.int64),
            ("mask_axes", [1, 2], np.int64),
            ("one", [1], np.int64),
            ("zero", 0.0, np.float32),
            ("fill", list(fill) if len(fill) > 1 else fill[0], np.float32),
        )
    ]
    nodes = [
        node("Shape", ["mask"], ["texts"], start=0, end=1),
        node("Shape", ["mask"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["n"]),
        node("Range", ["start", "n", "step"], ["positions"], name="positions"),
        node("Unsqueeze", ["positions", "row_axes"], ["rows_at"]),
        node("GreaterOrEqual", ["rows_at", "limit"], ["rows"], name="rows"),
        node("Cast", ["mask"], ["tokens"], to=TensorProto.BOOL),
        node("Unsqueeze", ["tokens", "mask_axes"], ["columns"]),
        node("And", ["rows", "columns"], ["both"], name="both"),
        node("Concat", ["texts", "one", "length", "length"], ["full"], axis=0),
        node("Expand", ["both" if has_rows else "columns", "full"], ["expanded"], name="expand"),
        node("Where", ["expanded", "zero", "fill"], ["bias"], name="where"),
        node(reader, ["scores", "bias"], ["y"], name="reader"),
    ]
    graph = model(
        nodes,
        tensors,
        inputs={
            "mask": (TensorProto.INT64, ["batch", "sequence"]),
            "scores": (TensorProto.FLOAT, list(scores)),
        },
        outputs={"y": (TensorProto.FLOAT, ["batch", 2, "sequence", "sequence"])},
    )
    # As exporters record them; that of `rows` says that there is one row for each position.
    for name, dims in {"expanded": LENGTHS, "rows": [1, 1, "sequence", 1]}.items():
        kind = TensorProto.BOOL
        graph.graph.value_info.append(helper.make_tensor_value_info(name, kind, dims))
    return graph


def _shrunk(graph: onnx.ModelProto, folder: Path) -> tuple[tuple[str, ...], onnx.ModelProto]:
    onnx.save(graph, folder / "model.onnx")
    loaded = load_ir_model(folder / "model.onnx")
    names = shrink_masks(loaded)
    (folder / "out").mkdir()
    save_ir_model(loaded, folder / "out")
    return names, onnx.load(folder / "out" / "model.onnx")


def _run(graph: onnx.ModelProto, batch: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(batch * 100 + length)
    mask = np.ones((batch, length), np.int64)
    mask[0, length // 2 :] = 0
    scores = rng.standard_normal((batch, 2, length, length)).astype(np.float32)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"mask": mask, "scores": scores})
    return np.asarray(result)


@pytest.mark.parametrize("has_rows", [True, False])
def test_a_mask_of_tokens_is_no_longer_written_out_and_sums_are_the_same_bits(
    tmp_path: Path, has_rows: bool
) -> None:
    graph = _masked(has_rows=has_rows)
    names, shrunk = _shrunk(graph, tmp_path)
    assert names == ("where",)
    operators = {node.op_type for node in shrunk.graph.node}
    assert not operators & {"Expand", "And", "Range", "GreaterOrEqual"}
    for batch, length in ((1, 1), (2, 5), (3, 8)):
        np.testing.assert_array_equal(
            _run(shrunk, batch, length), _run(graph, batch, length), strict=True
        )


def test_a_condition_on_rows_that_does_not_always_hold_stays(tmp_path: Path) -> None:
    graph = _masked(limit=1)
    names, same = _shrunk(graph, tmp_path)
    assert names == ()
    np.testing.assert_array_equal(_run(same, 2, 5), _run(graph, 2, 5))
    # Without it, row 0 would be another.
    assert (_run(graph, 2, 5)[1, :, 0] < -1e3).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"start": -1},  # counts from below the limit
        {"step": -1, "start": 3},  # counts down, past it
        {"reader": "Mul"},  # not only added
        {"scores": ("batch", 2, None, "sequence")},  # may be smaller than the mask
        {"scores": ("batch", 2, 1, "sequence")},  # is smaller: the sum grows by the mask
        {"fill": (-1e4, -1.0)},  # not one number
    ],
)
def test_what_is_not_proven_is_left_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    names, same = _shrunk(_masked(**changes), tmp_path)  # type: ignore[arg-type]
    assert names == ()
    assert "Expand" in {node.op_type for node in same.graph.node}


def test_a_mask_that_the_graph_returns_stays(tmp_path: Path) -> None:
    graph = _masked()
    graph.graph.output.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, LENGTHS))
    names, _ = _shrunk(graph, tmp_path)
    assert names == ()


def test_an_expanded_condition_that_something_else_reads_stays(tmp_path: Path) -> None:
    graph = _masked()
    graph.graph.node.append(helper.make_node("Not", ["expanded"], ["padding"]))
    graph.graph.output.append(helper.make_tensor_value_info("padding", TensorProto.BOOL, LENGTHS))
    names, _ = _shrunk(graph, tmp_path)
    assert names == ()
