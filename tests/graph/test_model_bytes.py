"""A model written piece by piece has the bytes that protobuf writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pipeline.graph.files import load_ir_model, load_model, save_ir_model
from pipeline.graph.model_bytes import STREAMED_BYTES, write_model
from tests.graph.models import embedding_model

if TYPE_CHECKING:
    from pathlib import Path

ROWS = STREAMED_BYTES // 16 + 3
"""Of a table that is streamed, with four columns."""


def everything() -> ir.Model:
    """A model with weights of several kinds beside its table, and all fields before and after them."""
    proto = embedding_model(rows=ROWS)
    proto.producer_name, proto.doc_string = "somebody", "of a model"
    proto.metadata_props.add(key="key", value="value")
    proto.graph.doc_string = "of a graph"
    proto.graph.metadata_props.add(key="other", value="value")
    model = ir.serde.deserialize_model(proto)
    size = STREAMED_BYTES * 2
    arrays = {
        "int4": np.arange(size).astype(np.int8).reshape(2, -1) % 7,
        "half": (np.arange(size) % 1000).astype(np.float16),
        "small": np.arange(5, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    for name, array in arrays.items():
        stored = array.astype(ml_dtypes.int4) if name == "int4" else array
        tensor = ir.tensor(stored, name=name, doc_string="of a tensor" if name == "half" else None)
        model.graph.register_initializer(
            ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return model


def test_the_bytes_are_those_of_protobuf(tmp_path: Path) -> None:
    model = everything()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    path = save_ir_model(model, tmp_path)
    assert path.read_bytes() == ir.serde.serialize_model(model).SerializeToString(
        deterministic=True
    )
    assert {n: v.const_value for n, v in model.graph.initializers.items()} == before
    onnx.checker.check_model(path)


def test_weights_that_lie_outside_are_written_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    outside = save_ir_model(everything(), tmp_path / "outside", inline_limit_bytes=0)
    assert outside.with_name("model.onnx_data").exists()
    path = save_ir_model(load_ir_model(outside), tmp_path)
    assert {
        t.name: onnx.numpy_helper.to_array(t).tobytes() for t in load_model(path).graph.initializer
    } == {
        t.name: onnx.numpy_helper.to_array(t).tobytes()
        for t in load_model(outside).graph.initializer
    }
    assert not any(t.external_data for t in onnx.load_model(path).graph.initializer)


class _Short(ir.LazyTensor):
    def tofile(self, file: object) -> None:
        """Writes nothing."""


def test_a_weight_that_writes_too_little_is_an_error(tmp_path: Path) -> None:
    model = everything()
    value = model.graph.initializers["half"]
    assert value.const_value is not None
    value.const_value = _Short(
        lambda: ir.tensor(np.zeros(1)), value.const_value.dtype, ir.Shape(value.const_value.shape)
    )
    with (tmp_path / "model").open("wb") as file, pytest.raises(ValueError, match="0 bytes"):
        write_model(model, file)
