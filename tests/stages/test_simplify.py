from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import pytest

from pipeline.errors import ArtifactError, StageError
from pipeline.graph.files import save_model
from pipeline.hashing import sha256_file
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.graph.models import embedding_model, parse, random, run, write
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON

WORDY = """
g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
{
    one = Constant<value = float {1.0}>()
    two = Add(one, one)
    same = Identity(x)
    product = MatMul(same, w)
    biased = Add(product, b)
    y = Mul(biased, two)
}
"""
FEEDS = {"x": random(2, 3, 4)}

Tool = Literal["onnxsim", "onnxslim"]


def simplify(model: Path, output: Path, tool: Tool = "onnxsim") -> tuple[Path, Mapping[str, JSON]]:
    output.mkdir()
    context = RecordingContext(scratch=output)
    facts = SIMPLIFY.run(SimplifyConfig(tool=tool), {"model": model.parent}, output, context)
    return output / "model.onnx", facts


def wordy() -> onnx.ModelProto:
    return parse(WORDY, {"w": random(4, 4, seed=1), "b": random(4, seed=2)})


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_constants_are_folded_and_the_numbers_stay(tool: Tool, tmp_path: Path) -> None:
    before = write(tmp_path / "in", wordy())
    after, facts = simplify(before, tmp_path / "out", tool)
    assert facts["tool"] == tool
    assert facts["nodes_before"] == 6
    assert facts["ops_after"] == {"Add": 1, "MatMul": 1, "Mul": 1}
    np.testing.assert_allclose(run(after, FEEDS)[0], run(before, FEEDS)[0], atol=1e-6)


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_names_axes_and_opset_stay(tool: Tool, tmp_path: Path) -> None:
    after, _ = simplify(write(tmp_path / "in", wordy()), tmp_path / "out", tool)
    model, original = onnx.load_model(after), wordy()
    assert model.graph.input == original.graph.input
    assert model.graph.output == original.graph.output
    assert model.opset_import[0].version == 20


def test_linear_layers_are_not_written_as_reshaped_gemms(tmp_path: Path) -> None:
    _, facts = simplify(write(tmp_path / "in", wordy()), tmp_path / "out")
    ops = facts["ops_after"]
    assert isinstance(ops, dict)
    assert "Gemm" not in ops


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "in", wordy())
    first, _ = simplify(source, tmp_path / "a")
    second, _ = simplify(source, tmp_path / "b")
    assert sha256_file(first) == sha256_file(second)


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = save_model(embedding_model(rows=512), tmp_path / "in", inline_limit_bytes=1000)
    before = {file.name: sha256_file(file) for file in source.parent.iterdir()}
    after, _ = simplify(source, tmp_path / "out")
    assert {file.name: sha256_file(file) for file in source.parent.iterdir()} == before
    shutil.rmtree(source.parent)  # nothing may point back there
    feeds = {
        "input_ids": np.array([[3, 511]], dtype=np.int64),
        "attention_mask": np.array([[1, 1]], dtype=np.int64),
    }
    np.testing.assert_array_equal(run(after, feeds)[0][0], random(512, 4)[[3, 511]])


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    model = wordy()
    model.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(StageError):
        simplify(write(tmp_path / "in", model), tmp_path / "out")


def test_a_tool_that_loses_an_axis_name_fails_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.graph import simplification

    def careless(model: onnx.ModelProto, tool: Tool) -> onnx.ModelProto:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
        return model

    monkeypatch.setattr(simplification, "simplify_model", careless)
    with pytest.raises(StageError, match="input `x` changed"):
        simplify(write(tmp_path / "in", wordy()), tmp_path / "out")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        simplify(tmp_path / "nothing" / "model.onnx", tmp_path / "out")


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_an_exported_encoder_keeps_its_named_axes(
    tool: Tool, exported_encoder: Path, tmp_path: Path
) -> None:
    after, _ = simplify(exported_encoder, tmp_path / "out", tool)
    inputs = onnx.load(after).graph.input
    axes = {tuple(dim.dim_param for dim in item.type.tensor_type.shape.dim) for item in inputs}
    assert axes == {("batch", "sequence")}
    feeds = {item.name: np.array([[1, 0, 1], [1, 1, 0]]) for item in inputs}
    for got, expected in zip(run(after, feeds), run(exported_encoder, feeds), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
