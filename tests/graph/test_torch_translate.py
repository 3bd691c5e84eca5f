from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.export import Dim

from pipeline.errors import ExportError
from pipeline.graph.dataflow import require_live_inputs
from pipeline.graph.files import save_ir_model
from pipeline.graph.torch_translate import Translation, translate_program
from tests.graph.models import run

if TYPE_CHECKING:
    from pathlib import Path


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.contiguous()) + 1.0


class WritesInPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 0] += 2.0
        return y


class MixesTypes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[1]) * 0.5 + x


class MakesATensor(torch.nn.Module):
    """Traced as a `detach_`, which torch calls one that writes; every rotary embedding has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0])


class SumsSmallIntegers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum((x > 0).int(), dim=1)


class TakesPiecesApart(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.split(2, dim=-1)
        return first - second


class ViewsACopy(torch.nn.Module):
    """Mixes types, so that it is traced a second time, in which the view must still be possible."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(-1, 2, 2).transpose(0, 1).contiguous()
        return heads.view(2, -1) * 0.5 + torch.arange(x.shape[0] * 2)


class CountsWithSizes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sym_min(x.shape[0], 8)


class HasNoTranslation(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x)


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1])
        return (self.table(ids) + self.table(places)) * mask.unsqueeze(-1)


def translate(module: torch.nn.Module, example: torch.Tensor) -> Translation:
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))
    return translate_program(program, input_names=["x"], output_names=["y"], opset=20)


@pytest.mark.parametrize(
    ("module", "route"),
    [
        (Plain(), "direct"),
        (SumsSmallIntegers(), "direct"),
        (MakesATensor(), "direct"),
        (TakesPiecesApart(), "direct"),
        (ViewsACopy(), "decomposed"),
        (CountsWithSizes(), "decomposed"),
        (WritesInPlace(), "decomposed"),
        (MixesTypes(), "decomposed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else str(value),
)
def test_both_routes_compute_what_torch_does(
    module: torch.nn.Module, route: str, tmp_path: Path
) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    translation = translate(module, x.clone())
    assert translation.route == route
    assert not translation.model.functions
    assert translation.model.opset_imports[""] == 20
    path = save_ir_model(translation.model, tmp_path)
    (found,) = run(path, {"x": x.numpy()})
    expected = module(x.clone()).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_operator_without_translation_is_named() -> None:
    with pytest.raises(ExportError, match=r"linalg_eigh|eigvalsh"):
        translate(HasNoTranslation(), torch.randn(2, 3, 3))


def test_the_wrong_graph_that_torch_makes_of_one_tensor_for_two_inputs_is_refused() -> None:
    axes = {0: Dim("batch"), 1: Dim("sequence")}
    same = torch.ones(2, 5, dtype=torch.int64)
    program = torch.export.export(TwoInputs().eval(), (same, same), dynamic_shapes=(axes, axes))
    translation = translate_program(
        program, input_names=["input_ids", "attention_mask"], output_names=["y"], opset=20
    )
    # If this stops failing, torch has been mended, and the comment in torch_model can go.
    with pytest.raises(ExportError, match="no output depends on the data of input"):
        require_live_inputs(ir.serde.serialize_model(translation.model))


def test_distinct_tensors_give_the_right_graph() -> None:
    axes = {0: Dim("batch"), 1: Dim("sequence")}
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    program = torch.export.export(TwoInputs().eval(), (ids, mask), dynamic_shapes=(axes, axes))
    translation = translate_program(
        program, input_names=["input_ids", "attention_mask"], output_names=["y"], opset=20
    )
    require_live_inputs(ir.serde.serialize_model(translation.model))
