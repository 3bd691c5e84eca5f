"""Weights that are written before the graph is there: the same graph, the same numbers, nothing more."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.data.stored_tensors import StoredTensor, stored_tensors
from pipeline.graph.early_weights import EarlyWeights
from pipeline.graph.files import load_ir_model
from pipeline.graph.large_weights import TransposedWeight
from pipeline.graph.stored_weights import stored_weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = (1000, 10**9)


class Model(nn.Module):
    """An embedding, a product, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(600, 512)
        self.product = nn.Linear(512, 700)
        self.down = nn.Linear(700, 512, bias=False)
        self.head = nn.Linear(512, 600, bias=False)
        self.head.weight = self.table.weight


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, StoredTensor]:
    torch.manual_seed(0)
    weights = {name: tensor.to(request.param) for name, tensor in Model().state_dict().items()}
    del weights["head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    return stored_tensors(tmp_path / "model.safetensors")


def finder(
    module: nn.Module, stored: dict[str, StoredTensor]
) -> Callable[[torch.Tensor], StoredTensor | None]:
    places = {tensor.data_ptr(): stored.get(name) for name, tensor in module.named_parameters()}
    return lambda tensor: places.get(tensor.data_ptr())


def graph_of(stored: dict[str, StoredTensor], turned: tuple[str, ...]) -> ir.Model:
    """A graph of the weights alone, some of them transposed, and one that is of no checkpoint."""
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    tensors: dict[str, ir.TensorProtocol] = {
        name: (
            TransposedWeight(stored_weight(source, name), (1, 0), name)
            if name in turned
            else stored_weight(source, name)
        )
        for name, source in stored.items()
    }
    tensors["computed"] = ir.Tensor(np.arange(5000, dtype=np.float32), name="computed")
    for name, tensor in tensors.items():
        shape = ir.Shape(tensor.shape.numpy())
        held = ir.Value(
            name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(held)
    return model


TURNED = ("product.weight", "down.weight")


@pytest.mark.parametrize(
    ("turned", "is_used"), [(TURNED, True), (TURNED[:1], False)], ids=["as guessed", "otherwise"]
)
def test_what_was_guessed_is_used_and_the_rest_is_added(
    tmp_path: Path, stored: dict[str, StoredTensor], turned: tuple[str, ...], is_used: bool
) -> None:
    module, output = Model(), tmp_path / "output"
    output.mkdir()
    find = finder(module, stored)
    with contextlib.closing(EarlyWeights(module, find, output, limits=LIMITS)) as early:
        assert early.save(graph_of(stored, turned)) == is_used
    if not is_used:
        assert list(output.iterdir()) == []  # nothing is left of it for who writes it otherwise
        return
    written = load_ir_model(output / "model.onnx").graph.initializers
    for name, source in stored.items():
        expected = source.read().T if name in turned else source.read()
        tensor = written[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), expected)
    computed = written["computed"].const_value
    assert computed is not None
    np.testing.assert_array_equal(computed.numpy(), np.arange(5000))
    size = sum(4 * source.size for source in stored.values())
    assert (output / "model.onnx_data").stat().st_size < size + 5000 * 4 + 3 * 4096


@pytest.mark.parametrize("limits", [(10**9, 10**10), (1, 1000)], ids=["inside", "in 16 bits"])
def test_weights_that_are_not_written_so_are_left_alone(
    tmp_path: Path, stored: dict[str, StoredTensor], limits: tuple[int, int]
) -> None:
    module, output = Model(), tmp_path / "output"
    output.mkdir()
    early = EarlyWeights(module, finder(module, stored), output, limits=limits)
    assert not early.save(graph_of(stored, TURNED))
    early.close()
    assert list(output.iterdir()) == []


def test_a_file_that_cannot_be_written_is_left_to_who_can_say_why(
    tmp_path: Path, stored: dict[str, StoredTensor]
) -> None:
    module = Model()
    early = EarlyWeights(module, finder(module, stored), tmp_path / "gone", limits=LIMITS)
    with contextlib.closing(early):
        assert not early.save(graph_of(stored, TURNED))
