"""A decoder in few bits takes the room of its weights in few bits, and nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.matmul_nbits import pack_products
from pipeline.stages.base import MODEL_FILE, model_size_bytes
from pipeline.stages.pack_weights import PACK_WEIGHTS
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS
from tests.graph.models import random, write
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, HIDDEN, INNER, LAYERS = 4000, 64, 256, 3
BLOCK = 32
ROOM = 1.02
"""Of a file, over the bytes of what it must hold."""


def decoder() -> onnx.ModelProto:
    """A table of tokens, products, and a head with weights of its own."""
    weights = {"table": random(VOCABULARY, HIDDEN), "head": random(HIDDEN, VOCABULARY, seed=1)}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden_0"], axis=0)]
    for layer in range(LAYERS):
        weights[f"up_{layer}"] = random(HIDDEN, INNER, seed=2 + layer)
        weights[f"down_{layer}"] = random(INNER, HIDDEN, seed=9 + layer)
        nodes += [
            helper.make_node("MatMul", [f"hidden_{layer}", f"up_{layer}"], [f"inner_{layer}"]),
            helper.make_node("Relu", [f"inner_{layer}"], [f"kept_{layer}"]),
            helper.make_node(
                "MatMul", [f"kept_{layer}", f"down_{layer}"], [f"hidden_{layer + 1}"]
            ),
        ]
    nodes.append(helper.make_node("MatMul", [f"hidden_{LAYERS}", "head"], ["logits"]))
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, VOCABULARY])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def needed_bytes(*, table_bits: int) -> float:
    """Of integers and scales; one scale for a block, and one for a row of the table."""
    products = LAYERS * 2 * HIDDEN * INNER + HIDDEN * VOCABULARY
    scale = 0 if table_bits == 32 else 4
    return products * (0.5 + 4 / BLOCK) + VOCABULARY * (HIDDEN * table_bits / 8 + scale)


@pytest.mark.parametrize(("embeddings", "table_bits"), [("float", 32), ("int8", 8)])
def test_what_is_delivered_holds_each_weight_once(
    tmp_path: Path, embeddings: str, table_bits: int
) -> None:
    folders = [write(tmp_path / "given", decoder()).parent]
    config = {"bits": 4, "block_size": BLOCK, "method": "rtn", "embeddings": embeddings}
    for stage, given in ((QUANTIZE_WEIGHTS, config), (PACK_WEIGHTS, {})):
        output = tmp_path / stage.name
        output.mkdir()
        stage.run(
            stage.config_type.model_validate(given),
            {"model": folders[-1]},
            output,
            RecordingContext(tmp_path),
        )
        folders.append(output)
    limit = ROOM * needed_bytes(table_bits=table_bits)
    for folder in folders[1:]:
        size = model_size_bytes(folder)
        assert size == sum(file.stat().st_size for file in folder.iterdir())
        assert needed_bytes(table_bits=table_bits) < size <= limit, folder.name
    # A second copy of the head alone would be seen.
    head = np.zeros((HIDDEN, VOCABULARY // 2), np.uint8)
    model = onnx.load(folders[-1] / MODEL_FILE)
    model.graph.initializer.append(onnx.numpy_helper.from_array(head, "again"))
    assert model.ByteSize() > limit


def test_packing_lets_go_of_what_it_has_read(tmp_path: Path) -> None:
    """A weight of 4 bits is kept with a byte for each number otherwise: 7 GB of 7 B weights."""
    given = write(tmp_path / "given", decoder()).parent
    output = tmp_path / "quantized"
    output.mkdir()
    config = QUANTIZE_WEIGHTS.config_type.model_validate({"bits": 4, "method": "rtn"})
    QUANTIZE_WEIGHTS.run(config, {"model": given}, output, RecordingContext(tmp_path))
    (tmp_path / "outside").mkdir()
    path = save_ir_model(
        load_ir_model(output / MODEL_FILE), tmp_path / "outside", inline_limit_bytes=0
    )
    model = load_ir_model(path)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    integers = [
        tensor
        for tensor in tensors
        if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == ir.DataType.INT4
    ]
    report = pack_products(model, accuracy_level=4)
    assert report.weights == len(integers) == 2 * LAYERS + 1
    assert [tensor.name for tensor in integers if tensor.raw is not None] == []
