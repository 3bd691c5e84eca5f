"""Decoders with their cache as tensors: torch against itself, and the exported graph against torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ExportError
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.torch_decoder import CachedDecoder, require_cache_agreement
from pipeline.runtimes.torch_model import TorchComponent, load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
LIMIT = 1e-5
"""Of the largest output; 1.2e-6 was measured, and a wrong graph is off by as much as the output."""
SHAPES = ((1, 0, 1), (2, 0, 6), (3, 1, 1), (2, 9, 3), (1, 100, 6), (2, 5, 1))
"""Batch, past and sequence; the trace saw 2, 7 and 11."""

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
HEADS_8 = COMMON | {"head_dim": 8}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 32,
    "init_std": 0.3,
}
NEOX = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}

FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"initializer_range": 0.3}, 4),
}
MORE: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", COMMON, 2),
    "mistral": ("MistralForCausalLM", HEADS_8 | {"sliding_window": 4}, 2),
    "qwen2": ("Qwen2ForCausalLM", COMMON, 2),
    "qwen3": ("Qwen3ForCausalLM", HEADS_8, 2),
    "gemma": ("GemmaForCausalLM", HEADS_8 | {"num_key_value_heads": 1}, 1),
    "gemma2": ("Gemma2ForCausalLM", HEADS_8 | {"sliding_window": 4}, 2),
    "gemma3": ("Gemma3ForCausalLM", HEADS_8 | {"sliding_window": 4}, 2),
    "phi": ("PhiForCausalLM", COMMON, 2),
    "phi3": ("Phi3ForCausalLM", COMMON | {"pad_token_id": 0}, 2),
    "opt": ("OPTForCausalLM", OPT, 4),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX, 4),
}
"""Class, config and the heads of keys and values that its cache has."""


def _checkpoint(path: Path, name: str, config: dict[str, Any]) -> Path:
    import transformers

    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model_class(model_class.config_class(**config)).save_pretrained(path)
    return path


def _export(checkpoint: Path, output: Path) -> dict[str, Any]:
    output.mkdir()
    config = ExportConfig(task=TASK, component="model")
    facts = EXPORT.run(config, {"checkpoint": checkpoint}, output, RecordingContext(output.parent))
    return dict(facts)


def _check(tmp_path: Path, name: str, config: dict[str, Any], heads: int) -> None:
    checkpoint = _checkpoint(tmp_path / "checkpoint", name, config)
    facts = _export(checkpoint, tmp_path / "onnx")
    caches = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert facts["inputs"] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{cache}" for cache in caches),
    ]
    assert facts["outputs"] == ["logits", *(f"present.{cache}" for cache in caches)]
    loaded = load_torch_model(checkpoint, TASK, "model", attention="eager")
    with OnnxRuntimeRunner(tmp_path / "onnx/model.onnx", threads=1) as runner:
        shapes = {spec.name: spec.shape for spec in (*runner.inputs, *runner.outputs)}
        assert shapes["past_key_values.0.key"] == ("batch", heads, "past_sequence", 8)
        assert shapes["present.1.value"] == ("batch", heads, "total_sequence", 8)
        assert shapes["attention_mask"] == ("batch", "total_sequence")
        assert shapes["logits"] == ("batch", "sequence", 97)
        for batch, past, sequence in SHAPES:
            fed = loaded.example(batch=batch, past_sequence=past, sequence=sequence)
            with torch.no_grad():
                expected = loaded.module(*fed)
            feeds = {
                spec.name: tensor.numpy() for spec, tensor in zip(runner.inputs, fed, strict=True)
            }
            found = runner.run(feeds)
            # What padding on the left of the last row gives, nobody reads.
            start = 2 if past == 0 and sequence > 2 else 0
            for output, tensor in zip(loaded.output_names, expected, strict=True):
                wanted, given = tensor.numpy(), found[output]
                assert given.shape == wanted.shape
                if start and output == "logits":
                    wanted, given = wanted[:, start:], given[:, start:]
                assert np.abs(given - wanted).max(initial=0) <= LIMIT * np.abs(wanted).max(
                    initial=1
                ), (batch, past, sequence, output)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_graph_agrees_with_torch_at_every_past(tmp_path: Path, family: str) -> None:
    _check(tmp_path, *FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(MORE))
def test_one_graph_agrees_with_torch_at_every_past_in_other_families(
    tmp_path: Path, family: str
) -> None:
    _check(tmp_path, *MORE[family])


def _loaded(tmp_path: Path) -> TorchComponent:
    checkpoint = _checkpoint(tmp_path / "checkpoint", "LlamaForCausalLM", COMMON)
    return load_torch_model(checkpoint, TASK, "model")


class _Damaged(nn.Module):
    """A decoder to which something is done before and after it runs."""

    def __init__(self, module: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fed = list(tensors)
        if self.before is not None:
            fed = self.before(fed)
        result = self.module(*fed)
        return result if self.after is None else (result[0], *map(self.after, result[1:]))


def _without_mask(fed: list[torch.Tensor]) -> list[torch.Tensor]:
    return [fed[0], torch.ones_like(fed[1]), *fed[2:]]


def _from_the_start(fed: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*fed[:2], torch.arange(fed[0].shape[1]).expand_as(fed[0]), *fed[3:]]


def _forgetful(fed: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*fed[:3], *(torch.zeros_like(state) for state in fed[3:])]


@pytest.mark.parametrize(
    "damage",
    [
        {"before": _without_mask},
        {"before": _from_the_start},
        {"before": _forgetful},
        {"after": lambda state: state.flip(1)},
        {"after": lambda state: torch.roll(state, 1, dims=2)},
    ],
    ids=["mask", "positions", "no cache", "heads swapped", "wrong place"],
)
def test_a_model_that_handles_its_cache_wrongly_is_refused(
    tmp_path: Path, damage: dict[str, Any]
) -> None:
    loaded = _loaded(tmp_path)
    require_cache_agreement(loaded)
    with pytest.raises(ExportError, match="other logits"):
        require_cache_agreement(replace(loaded, module=_Damaged(loaded.module, **damage)))


def test_a_checkpoint_whose_weights_are_no_numbers_is_refused(tmp_path: Path) -> None:
    loaded = _loaded(tmp_path)
    name, weight = list(loaded.module.named_parameters())[-1]
    weight.view(-1)[0] = float("nan")
    words = f"are no numbers .*: weight `{name.removeprefix('model.')}` holds some"
    with pytest.raises(ExportError, match=words) as caught:
        require_cache_agreement(loaded)
    assert "damaged" in caught.value.hint


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    experts = COMMON | {"num_local_experts": 4}
    checkpoint = _checkpoint(tmp_path / "checkpoint", "MixtralForCausalLM", experts)
    with pytest.raises(
        ExportError, match=r"`transformers\.grouped_mm_fallback\.default`"
    ) as caught:
        _export(checkpoint, tmp_path / "export")
    assert "stack trace" not in caught.value.message


def test_a_model_without_positions_among_its_inputs_is_refused(tmp_path: Path) -> None:
    config = {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    checkpoint = _checkpoint(tmp_path / "checkpoint", "BloomForCausalLM", config)
    with pytest.raises(ExportError, match="BloomForCausalLM takes no `position_ids`"):
        load_torch_model(checkpoint, TASK, "model")


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    """As a decoder BERT would keep one; as it is saved here, it looks at later tokens too."""
    checkpoint = _checkpoint(tmp_path / "checkpoint", "BertLMHeadModel", NEOX)
    with pytest.raises(ExportError, match="keeps no cache of the keys and values") as caught:
        load_torch_model(checkpoint, TASK, "model")
    assert "Mamba" in caught.value.hint


def test_heads_that_share_keys_and_values_stay_shared(tmp_path: Path) -> None:
    loaded = _loaded(tmp_path)
    assert isinstance(loaded.module, CachedDecoder)
    assert {taken.shape for taken in loaded.takes[3:]} == {("batch", 2, "past_sequence", 8)}
