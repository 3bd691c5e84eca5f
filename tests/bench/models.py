"""Tiny seeded models and samples for benchmark tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples
from tests import checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

VOCABULARY = 50
IMAGE_SIZE = (3, *checkpoints.IMAGE_SIZE)


def write_graph(directory: Path, *, width: int = 8, products: int = 1) -> Path:
    """Write `model.onnx`: ids and mask int64 (batch, sequence) in, float32 (width, width) out.

    The output is a matrix that depends on every token and is multiplied by a constant one
    `products` times: needless work, 2 · width³ operations each, that no optimiser can remove.
    """
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["tokens"]),
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
    ]
    axes = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name in ("input_ids", "attention_mask")
    ]
    return _write_work(directory, nodes, inputs, width=width, products=products)


def write_image_graph(directory: Path) -> Path:
    """Write `model.onnx`: float32 `pixel_values` (batch, *IMAGE_SIZE) in, float32 (8, 8) out."""
    nodes = [helper.make_node("Relu", ["pixel_values"], ["numbers"])]
    shape = ["batch", *IMAGE_SIZE]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)]
    return _write_work(directory, nodes, inputs, width=8, products=1)


def write_choice_graph(directory: Path) -> Path:
    """Write `model.onnx`: ids int64 (batch, num_choices, sequence) in, float32 (8, 8) out."""
    nodes = [helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT)]
    axes = ["batch", "num_choices", "sequence"]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes)]
    return _write_work(directory, nodes, inputs, width=8, products=1)


def _write_work(
    directory: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    *,
    width: int,
    products: int,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(0).normal(0, width**-0.5, (width, width)).astype(np.float32)
    nodes = [
        *nodes,
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["matrix", "mean"], ["product_0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"product_{i}", "matrix"], [f"product_{i + 1}"])
        for i in range(products)
    ]
    graph = helper.make_graph(
        nodes,
        "work",
        inputs,
        [helper.make_tensor_value_info(f"product_{products}", TensorProto.FLOAT, [width, width])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, directory / "model.onnx")
    return directory


def write_set(
    directory: Path,
    samples: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    axes: tuple[str | None, ...],
    dtype: Literal["int64", "float32"] = "int64",
) -> Path:
    """Write a sample set in which all inputs have the same type and named axes."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, sample in enumerate(samples):
        shape = next(iter(sample.values())).shape
        named = zip(axes, shape, strict=False)
        extents = {axis: size for axis, size in named if axis is not None}
        entries.append(SampleEntry(index=index, text=f"sample {index}", extents=extents))
    names = samples[0] if samples else ("input_ids",)
    index = SampleIndex(
        source="test",
        use="evaluation",
        seed=0,
        max_length=None,
        inputs={name: InputSpec(dtype=dtype, axes=axes) for name in names},
        samples=tuple(entries),
    )
    save_samples(index, samples, directory)
    return directory


def write_samples(directory: Path, *lengths: int) -> Path:
    """Write a sample set: one text a length, with ids, mask and token types."""
    random = np.random.default_rng(0)
    samples = [
        {
            "input_ids": random.integers(1, VOCABULARY, length, dtype=np.int64),
            "attention_mask": np.ones(length, dtype=np.int64),
            "token_type_ids": np.zeros(length, dtype=np.int64),
        }
        for length in lengths or (5, 9, 7)
    ]
    return write_set(directory, samples, ("sequence",))


def write_choices(directory: Path) -> Path:
    """Write a sample set of two samples with three choices; the first one's second is padded.

    The tokens are 1, 2, 3, ... in the order of samples, choices and places; padding is 0.
    """
    samples = []
    for ids in ([[1, 2, 3], [4, 0, 0], [5, 6, 7]], [[8, 9], [10, 11], [12, 13]]):
        tokens = np.array(ids, dtype=np.int64)
        samples.append(
            {
                "input_ids": tokens,
                "attention_mask": (tokens > 0).astype(np.int64),
                "token_type_ids": np.zeros_like(tokens),
            }
        )
    return write_set(directory, samples, ("num_choices", "sequence"))


def write_images(directory: Path, count: int = 3) -> Path:
    """Write a sample set of images, channels first; image `i` holds `i` and random fractions."""
    random = np.random.default_rng(0)
    samples = [
        {"pixel_values": (random.random(IMAGE_SIZE) + index).astype(np.float32)}
        for index in range(count)
    ]
    return write_set(directory, samples, (None, None, None), "float32")


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
