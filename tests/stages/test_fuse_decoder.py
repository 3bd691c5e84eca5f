"""Decoders after fusion: as torch at every past, batch and padding, in few operators."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.runtimes.test_torch_decoder import FAMILIES, LIMIT, MORE, SHAPES, TASK
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

ROTATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "phi", "phi3", "gpt_neox")
LAYERS = 2


def fuse_family(root: Path, family: str) -> tuple[Path, Path, dict[str, Any]]:
    """The checkpoint, the fused graph and the facts of a tiny decoder."""
    import transformers

    name, config, _ = (FAMILIES | MORE)[family]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**config))
    for weight in model.parameters():  # scales of norms that are not 1, biases that are not 0
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight.data, 0.5, 1.5)
    model.save_pretrained(root / "checkpoint")
    context, last = RecordingContext(root), root / "checkpoint"
    facts: dict[str, Any] = {}
    for stage, port, config in (
        (EXPORT, "checkpoint", ExportConfig(task=TASK, component="model")),
        (SIMPLIFY, "model", SimplifyConfig()),
        (FUSE, "model", FuseConfig()),
    ):
        output = root / stage.name
        output.mkdir()
        facts = dict(stage.run(config, {port: last}, output, context))
        last = output
    return root / "checkpoint", last / "model.onnx", facts


def check_against_torch(checkpoint: Path, path: Path) -> None:
    """Logits and cache at several pasts, batches and lengths; the last row is padded on the left."""
    loaded = load_torch_model(checkpoint, TASK, "model", attention="eager")
    with OnnxRuntimeRunner(path, threads=1) as runner:
        for batch, past, sequence in SHAPES:
            fed = loaded.example(batch=batch, past_sequence=past, sequence=sequence)
            with torch.no_grad():
                expected = loaded.module(*fed)
            feeds = {
                spec.name: tensor.numpy() for spec, tensor in zip(runner.inputs, fed, strict=True)
            }
            found = runner.run(feeds)
            start = 2 if past == 0 and sequence > 2 else 0  # behind the padding
            for output, tensor in zip(loaded.output_names, expected, strict=True):
                wanted, given = tensor.numpy(), found[output]
                assert given.shape == wanted.shape
                if output == "logits":
                    wanted, given = wanted[:, start:], given[:, start:]
                assert np.abs(given - wanted).max(initial=0) <= LIMIT * np.abs(wanted).max(
                    initial=1
                ), (batch, past, sequence, output)


def check_family(root: Path, family: str) -> tuple[Counter[str], dict[str, Any]]:
    """Operators of the fused graph, which is as torch, and the facts."""
    checkpoint, path, facts = fuse_family(root, family)
    check_against_torch(checkpoint, path)
    return Counter(node.op_type for node in onnx.load(path).graph.node), facts


def test_a_llama_is_fused_and_stays_right(tmp_path: Path) -> None:
    operators, facts = check_family(tmp_path, "llama")
    assert facts["attention_layers"] == {"found": LAYERS, "fused": LAYERS}
    assert facts["coverage"] == {"fused_attention": 1.0}
    fired = {name: outcome["fired"] for name, outcome in facts["fusions"].items()}
    assert fired["cached_attention"] == LAYERS
    assert fired["rotary"] == 2 * LAYERS
    assert fired["rms_norm"] == 2 * LAYERS + 1
    assert fired["skip_rms_norm"] == 2 * LAYERS
    assert operators["Attention"] == LAYERS
    assert operators["RotaryEmbedding"] == 2 * LAYERS
    assert not {"Softmax", "Neg", "Pow", "Sqrt"} & set(operators)
    model = onnx.load(tmp_path / "fuse/model.onnx")
    # Keys and values are not repeated for the heads that share them: the operator reads the inputs.
    for node in model.graph.node:
        if node.op_type == "Attention":
            assert node.input[4].startswith("past_key_values.")
            assert node.output[1].startswith("present.")


def test_a_gpt2_without_rotation_is_fused_and_stays_right(tmp_path: Path) -> None:
    operators, facts = check_family(tmp_path, "gpt2")
    assert facts["coverage"] == {"fused_attention": 1.0}
    assert operators["Attention"] == LAYERS
    assert facts["fusions"]["rotary"] == {"fired": 0, "refused": []}


def test_logits_of_the_last_tokens_only_when_a_run_asks_for_them(tmp_path: Path) -> None:
    """By an optional input; without it the graph is what it was."""
    _, path, _ = fuse_family(tmp_path, "llama")
    output = tmp_path / "last"
    output.mkdir()
    ports = {"model": path.parent}
    facts = FUSE.run(FuseConfig(last_logits=True), ports, output, RecordingContext(tmp_path))
    assert facts["fusions"]["last_logits"] == {"fired": 1, "refused": []}
    assert facts["fusions"]["cached_attention"] == {"fired": 0, "refused": []}
    tokens = np.random.default_rng(0).integers(0, 97, (2, 7))
    mask = np.ones_like(tokens)
    feed = Feed(tokens=tokens, mask=mask, positions=np.cumsum(mask, axis=1) - 1)
    with OrtDecoder(path, threads=1) as plain, OrtDecoder(output / "model.onnx", threads=1) as own:
        expected, _ = plain.step(feed, plain.empty(2))
        every, cache = own.step(feed, own.empty(2))
        assert np.array_equal(every, expected)
        for count in (1, 3):
            last, after = own.step(feed, own.empty(2), last=count)
            assert last.shape == (2, count, 97)
            assert np.abs(last - expected[:, -count:]).max() <= LIMIT * np.abs(expected).max()
            assert after.length == cache.length == 7
        assert own.inputs == plain.inputs  # who does not know of it need not give it


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*MORE} - {"llama"}))
def test_other_families_stay_right(tmp_path: Path, family: str) -> None:
    operators, facts = check_family(tmp_path, family)
    fired = {name: outcome["fired"] for name, outcome in facts["fusions"].items()}
    assert operators["Attention"] == fired["cached_attention"]
    # Gemma 2 bends its scores with a tangent, which is left as it is.
    assert operators["Attention"] == (0 if family == "gemma2" else LAYERS)
    assert operators["RotaryEmbedding"] == (2 * LAYERS if family in {*ROTATED, "gemma2"} else 0)
