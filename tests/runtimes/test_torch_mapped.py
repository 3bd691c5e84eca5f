"""Weights that stay in the checkpoint: the same numbers as from memory, and refusals where they are not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.data.stored_tensors import stored_tensors
from pipeline.errors import ArtifactError
from pipeline.runtimes.torch_mapped import LARGE_BYTES, NotMappedError, map_checkpoint
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
"""Embedding, head and most products are larger than `LARGE_BYTES`, keys, values and norms are not."""


def checkpoint(path: Path, dtype: torch.dtype, name: str = "Llama", **changes: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name}ForCausalLM")
    model = model_class(model_class.config_class(**(SIZES | changes)))
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)  # norms are not all ones
    model.to(dtype).save_pretrained(path)
    return path


def outputs(loaded: Any) -> tuple[torch.Tensor, ...]:
    tensors = loaded.example()
    with torch.no_grad():
        result: tuple[torch.Tensor, ...] = loaded.module(*tensors)
    return result


def test_an_export_has_the_numbers_of_a_checkpoint_that_was_never_loaded(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "checkpoint", torch.bfloat16), tmp_path / "out"
    out.mkdir()
    context = RecordingContext(scratch=tmp_path)
    EXPORT.run(ExportConfig(task=TASK, component="model"), {"checkpoint": source}, out, context)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]
    state = load_torch_model(source, TASK, "model").module.state_dict()
    graph = onnx.load_model(out / "model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    compared = 0
    for name, tensor in state.items():
        if name in stored:
            assert stored[name].dtype == np.float32
            np.testing.assert_array_equal(stored[name], tensor.numpy(), err_msg=name)
            compared += 1
    assert compared == 12  # embedding, head, three norms, four and three products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_read_while_modules_run_and_gone_afterwards(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    source = checkpoint(tmp_path / "checkpoint", dtype, tie_word_embeddings=True)
    (tmp_path / "scratch").mkdir()
    mapped = load_torch_model(source, TASK, "model", scratch=tmp_path / "scratch")
    assert mapped.mapped is not None
    assert mapped.mapped.is_stand_in == (dtype != torch.float32)
    expected = outputs(load_torch_model(source, TASK, "model"))
    with mapped.mapped.at_hand(mapped.module):
        for found, wanted in zip(outputs(mapped), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        if mapped.mapped.is_stand_in:  # a weight that is not where it is used is no zero
            with pytest.raises(RuntimeError):
                mapped.module.get_parameter("model.lm_head.weight") @ torch.ones(256)
    weight = mapped.module.get_parameter("model.lm_head.weight")
    assert weight.shape == (320, 256)
    assert bool(weight.any()) != mapped.mapped.is_stand_in
    if mapped.mapped.is_stand_in:  # holes take no room on disk
        (file,) = (tmp_path / "scratch/stand-in").glob("*.safetensors")
        large = sum(4 * t.size for t in stored_tensors(file).values() if 4 * t.size >= LARGE_BYTES)
        assert file.stat().st_size > large
        assert file.stat().st_blocks * 512 < file.stat().st_size - large + 65536


def test_weights_that_are_put_together_when_they_are_loaded_are_loaded(tmp_path: Path) -> None:
    """Experts are separate in a checkpoint and one tensor in the model."""
    source = checkpoint(tmp_path / "checkpoint", torch.bfloat16, "Mixtral", num_local_experts=2)
    (tmp_path / "scratch").mkdir()
    loaded = load_torch_model(source, TASK, "model", scratch=tmp_path / "scratch")
    assert loaded.mapped is None
    expected = outputs(load_torch_model(source, TASK, "model"))
    torch.testing.assert_close(outputs(loaded)[0], expected[0], rtol=0, atol=0)


def test_types_and_configs_that_float32_does_not_hold_are_left_to_transformers(
    tmp_path: Path,
) -> None:
    source = checkpoint(tmp_path / "double", torch.float64)
    with pytest.raises(NotMappedError, match="type F64"):
        map_checkpoint(source, tmp_path)
    config = source / "config.json"
    quantised = json.loads(config.read_text()) | {"quantization_config": {}}
    config.write_text(json.dumps(quantised))
    with pytest.raises(NotMappedError, match="quantised"):
        map_checkpoint(source, tmp_path)


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "checkpoint", torch.bfloat16) / "model.safetensors"
    tensors = stored_tensors(file)
    last = max(tensors.values(), key=lambda tensor: tensor.offset)
    assert np.isfinite(last.read()).all()
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(ArtifactError, match="shorter than its header says"):
        last.read()
    (tmp_path / "bad.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        stored_tensors(tmp_path / "bad.safetensors")
