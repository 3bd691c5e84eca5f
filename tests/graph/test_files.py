from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pipeline.errors import ArtifactError, StoreError
from pipeline.graph.files import load_ir_model, load_model, save_ir_model, save_model
from tests.graph.models import embedding_model, random, run, write

if TYPE_CHECKING:
    from pathlib import Path

FEEDS = {
    "input_ids": np.array([[3, 1, 2]], dtype=np.int64),
    "attention_mask": np.array([[1, 1, 0]], dtype=np.int64),
}


def external(directory: Path) -> Path:
    """A model with its weights in a file of their own."""
    directory.mkdir()
    return save_model(embedding_model(rows=512), directory, inline_limit_bytes=1000)


def set_entry(path: Path, key: str, value: str) -> None:
    model = onnx.load_model(path, load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
            break
    else:
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_small_weights_stay_inside_the_model_file(tmp_path: Path) -> None:
    path = save_model(embedding_model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert load_model(path) == embedding_model()


def test_large_weights_go_to_one_file_beside_it_and_come_back(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert path.stat().st_size < 2000
    table = onnx.numpy_helper.to_array(load_model(path).graph.initializer[0])
    np.testing.assert_array_equal(table, random(512, 4))
    moved = tmp_path / "b"
    path.parent.rename(moved)
    assert np.isfinite(run(moved / "model.onnx", FEEDS)[0]).all()


def test_an_ir_model_is_written_in_the_same_two_forms(tmp_path: Path) -> None:
    for name, limit in (("inside", 10**9), ("outside", 1000)):
        (tmp_path / name).mkdir()
        model = ir.serde.deserialize_model(embedding_model(rows=512))
        path = save_ir_model(model, tmp_path / name, inline_limit_bytes=limit)
        assert (path.parent / "model.onnx_data").exists() == (name == "outside")
        weights = load_ir_model(path).graph.initializers["table"].const_value
        assert weights is not None
        np.testing.assert_array_equal(weights.numpy(), random(512, 4))


def test_large_weights_begin_where_a_file_system_can_share_them(tmp_path: Path) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    for name, rows in (("a", 3), ("b", 1 << 18), ("c", 700), ("d", (1 << 18) + 1)):
        tensor = ir.Tensor(random(rows, 2), name=name)
        model.graph.register_initializer(
            ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        )
    first, second = (tmp_path / name for name in ("first", "second"))
    for directory in (first, second):
        directory.mkdir()
    save_ir_model(model, first, inline_limit_bytes=1000)
    save_ir_model(load_ir_model(first / "model.onnx"), second, inline_limit_bytes=1000)
    written = onnx.load_model(second / "model.onnx", load_external_data=False).graph.initializer
    offsets = {
        tensor.name: int(next(e.value for e in tensor.external_data if e.key == "offset"))
        for tensor in written
        if tensor.external_data
    }
    assert offsets.keys() == {"b", "c", "d"}  # the smallest is in the model file
    assert offsets["b"] % 4096 == offsets["d"] % 4096 == 0
    assert (first / "model.onnx_data").read_bytes() == (second / "model.onnx_data").read_bytes()
    assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data"])
def test_nothing_is_written_over_or_appended_to_a_file_that_is_there(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(StoreError, match="exists already"):
        save_model(embedding_model(rows=512), tmp_path, inline_limit_bytes=1000)
    assert (tmp_path / name).read_bytes() == b"before"


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/secret", "..", ""])
def test_external_data_outside_of_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    path = external(tmp_path / "a")
    set_entry(path, "location", location)
    with pytest.raises(ArtifactError, match="no file beside the model"):
        load_model(path)


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    data = path.parent / "model.onnx_data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="not a plain file"):
        load_model(path)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    data = path.parent / "model.onnx_data"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ArtifactError, match="the tensor ends at"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("offset", "-8", "negative"),
        ("length", "64000000000", "the tensor ends at"),
        ("offset", "one", "no number"),
        ("__class__", "x", "unknown key"),
    ],
)
def test_external_data_with_strange_entries_is_refused(
    tmp_path: Path, key: str, value: str, problem: str
) -> None:
    path = external(tmp_path / "a")
    set_entry(path, key, value)
    with pytest.raises(ArtifactError, match=problem):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x0a"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a", embedding_model())
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        load_model(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        load_model(tmp_path / "model.onnx")
