"""Rotary embeddings that go by the length of a text: transformers' own numbers, traced too."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from pipeline.graph.files import load_graph_only
from pipeline.graph.inspect import count_ops
from pipeline.runtimes.generation import prefill
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.runtimes.torch_rope import RopeOfLength, make_rope_traceable
from pipeline.stages.base import MODEL_FILE
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.decoders import TASK, build_tiny_llama
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

BORDER = 16
LENGTHS = (BORDER - 1, BORDER, BORDER + 1, 3 * BORDER)


def _longrope(path: Path) -> Path:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, pad_token_id=0,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, bos_token_id=None,
        max_position_embeddings=4 * BORDER, original_max_position_embeddings=BORDER, eos_token_id=None,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
        },
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(path)
    return path


def _dynamic(path: Path) -> Path:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    return build_tiny_llama(path, max_position_embeddings=BORDER, rope_parameters=rope)


@pytest.fixture(scope="module", params=[_longrope, _dynamic], ids=["longrope", "dynamic"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("rope") / "checkpoint")
    return made


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1])[None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens, position_ids=positions).logits
    return found


def test_every_length_has_the_numbers_of_transformers(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    traceable = copy.deepcopy(model)
    make_rope_traceable(traceable)
    assert any(isinstance(module, RopeOfLength) for module in traceable.modules())
    found = {}
    # Longest first: what a text leaves behind must not reach the next.
    for length in sorted(LENGTHS, reverse=True):
        tokens = torch.arange(length)[None] % 97
        fresh = copy.deepcopy(model)  # transformers keeps the frequencies of the longest text
        found[length] = _logits(traceable, tokens)
        assert torch.equal(found[length], _logits(fresh, tokens))
    short, beyond = found[BORDER][0], found[BORDER + 1][0, :BORDER]
    assert float((short - beyond).abs().max()) > 1e-2  # the border is one


def test_one_graph_knows_both_sides_of_the_border(checkpoint: Path, tmp_path: Path) -> None:
    context = RecordingContext(tmp_path, threads=2)
    for name in ("export", "simplify", "fuse"):
        (tmp_path / name).mkdir()
    config = ExportConfig(task=TASK, component="model")
    EXPORT.run(config, {"checkpoint": checkpoint}, tmp_path / "export", context)
    SIMPLIFY.run(SimplifyConfig(), {"model": tmp_path / "export"}, tmp_path / "simplify", context)
    FUSE.run(FuseConfig(), {"model": tmp_path / "simplify"}, tmp_path / "fuse", context)
    fused = tmp_path / "fuse" / MODEL_FILE
    assert count_ops(load_graph_only(fused))["RotaryEmbedding"] == 4
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with OrtDecoder(fused, threads=1) as decoder:
        for length in LENGTHS:
            tokens = np.arange(length)[None] % 97
            logits, _ = prefill(decoder, tokens, np.ones_like(tokens), keeps_all=True)
            expected = _logits(copy.deepcopy(model), torch.from_numpy(tokens)).numpy()
            np.testing.assert_allclose(logits, expected, atol=1e-4)
