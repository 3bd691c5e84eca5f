"""A checkpoint that is run module by module gives the numbers of the whole one, in each dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pipeline.runtimes import torch_streamed
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.runtimes.torch_reference import TorchReferenceRunner
from pipeline.runtimes.torch_streamed import at_hand, load_streamed
from tests.runtimes.test_torch_mapped import TASK, checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.runtimes.torch_model import TorchComponent


def _outputs(loaded: TorchComponent, dtype: torch.dtype) -> list[torch.Tensor]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with at_hand(loaded, dtype), torch.inference_mode():
            loaded.module.to(dtype)
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in loaded.example()]
            return list(loaded.module(*tensors))
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_read_when_they_are_used_change_no_bit(
    tmp_path: Path, stored: torch.dtype
) -> None:
    source = checkpoint(tmp_path / "checkpoint", stored, tie_word_embeddings=True)
    whole = load_streamed(source, TASK, "model", scratch=tmp_path)
    streamed = load_streamed(source, TASK, "model", scratch=tmp_path, limit=0)
    assert whole.mapped is None
    assert streamed.mapped is not None
    for dtype in (torch.float32, torch.float64):
        for found, expected in zip(_outputs(streamed, dtype), _outputs(whole, dtype), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_reference_of_a_large_checkpoint_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "checkpoint", torch.bfloat16)
    example = load_torch_model(source, TASK, "model")
    feeds = {
        name: tensor.numpy()
        for name, tensor in zip(example.input_names, example.example(), strict=True)
    }
    with TorchReferenceRunner(source, task=TASK, component="model") as runner:
        expected = runner.run(feeds)
    monkeypatch.setitem(torch_streamed.load_streamed.__kwdefaults__, "limit", 0)
    with TorchReferenceRunner(source, task=TASK, component="model", scratch=tmp_path) as runner:
        found = runner.run(feeds)
        head = runner._require_loaded().module.get_parameter("model.lm_head.weight")
        assert head.numel() == 0  # nothing of it is kept between runs
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_weights_that_memory_must_hold_all_the_same_are_told_of(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoint", torch.bfloat16, "Mixtral", num_local_experts=2)
    told: list[str] = []
    loaded = load_streamed(source, TASK, "model", scratch=tmp_path, limit=0, log=told.append)
    assert loaded.mapped is None
    assert "all weights are in memory" in told[0]
