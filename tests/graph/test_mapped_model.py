"""A model whose weights stay in its file is the same model, and writes the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pipeline.errors import ArtifactError
from pipeline.graph.files import load_ir_model, save_ir_model, save_model
from pipeline.graph.mapped_model import load_mapped_model
from tests.graph.models import embedding_model
from tests.graph.test_model_bytes import everything

if TYPE_CHECKING:
    from pathlib import Path

SMALLEST = 64


def written(tmp_path: Path) -> Path:
    return save_ir_model(everything(), tmp_path)


def test_weights_are_mapped_and_all_else_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    read, mapped = load_ir_model(path), load_mapped_model(path, smallest_bytes=SMALLEST)
    outside = set()
    for name, value in read.graph.initializers.items():
        expected, tensor = value.const_value, mapped.graph.initializers[name].const_value
        assert expected is not None
        assert tensor is not None
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(tensor.numpy(), expected.numpy())
        assert tensor.tobytes() == expected.tobytes()
        if isinstance(tensor, ir.ExternalTensor):
            outside.add(name)
    assert outside == {"table", "half", "int4"}
    for directory in ("read", "mapped"):
        (tmp_path / directory).mkdir()
    again = [save_ir_model(m, tmp_path / d) for m, d in ((read, "read"), (mapped, "mapped"))]
    assert again[0].read_bytes() == again[1].read_bytes() == path.read_bytes()


def test_a_model_with_its_weights_in_another_file_is_read_as_ever(tmp_path: Path) -> None:
    path = save_model(embedding_model(rows=512), tmp_path, inline_limit_bytes=1000)
    tensor = load_mapped_model(path).graph.initializers["table"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.location == "model.onnx_data"


def test_numbers_that_are_no_raw_bytes_are_read(tmp_path: Path) -> None:
    proto = embedding_model(rows=512)
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend(array.reshape(-1))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    tensor = (
        load_mapped_model(path, smallest_bytes=SMALLEST).graph.initializers["table"].const_value
    )
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_what_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    content = written(tmp_path).read_bytes()
    twice = onnx.ModelProto.FromString(content)
    twice.graph.initializer.append(twice.graph.initializer[0])
    damaged = {
        "cut": content[: len(content) // 2],
        "cut in a length": content[:-1],
        "text": b"not a model at all" * 100,
        "empty": b"",
        "nothing in it": onnx.ModelProto().SerializeToString() + b"\x08\x00",
        "a name twice": twice.SerializeToString(),
    }
    for name, wrong in damaged.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(wrong)
        with pytest.raises(ArtifactError, match=r"no ONNX graph|not a readable ONNX file"):
            load_mapped_model(path)
    with pytest.raises(ArtifactError, match="not a readable ONNX file"):
        load_mapped_model(tmp_path / "absent.onnx")
