"""Tiny seeded models and samples for benchmark tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 50


def write_graph(directory: Path, *, width: int = 8, products: int = 1) -> Path:
    """Write `model.onnx`: ids and mask int64 (batch, sequence) in, float32 (width, width) out.

    The output is a matrix that depends on every token and is multiplied by a constant one
    `products` times: needless work, 2 · width³ operations each, that no optimiser can remove.
    """
    directory.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(0).normal(0, width**-0.5, (width, width)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["tokens"]),
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["matrix", "mean"], ["product_0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"product_{i}", "matrix"], [f"product_{i + 1}"])
        for i in range(products)
    ]
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "work",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, axes)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(f"product_{products}", TensorProto.FLOAT, [width, width])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, directory / "model.onnx")
    return directory


def write_samples(directory: Path, *lengths: int) -> Path:
    """Write `samples.safetensors`: one sample a length, with ids, mask and token types."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    tensors = {}
    for index, length in enumerate(lengths or (5, 9, 7)):
        tensors[f"input_ids/{index:06d}"] = random.integers(1, VOCABULARY, length, dtype=np.int64)
        tensors[f"attention_mask/{index:06d}"] = np.ones(length, dtype=np.int64)
        tensors[f"token_type_ids/{index:06d}"] = np.zeros(length, dtype=np.int64)
    save_file(tensors, directory / "samples.safetensors")
    return directory


def write_checkpoint(directory: Path) -> Path:
    """Write a one-layer BERT with random weights: the smallest checkpoint torch can load."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(directory)
    return directory
