"""`convert export-optimum`: what `optimum.onnxruntime` looks for; itself in the slow test."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

from pipeline.bundle.optimum_layout import export_optimum
from pipeline.runtimes.generation import GenerationOptions, generate
from pipeline.runtimes.ort_decoder import OrtDecoder
from tests.bundle.conftest import remake

PROMPTS = ([67, 68, 69], [70, 71, 220, 72, 73])
SCRIPT = """
import json, sys, torch
from optimum.onnxruntime import ORTConfig, ORTModelForCausalLM
from transformers import AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = ORTModelForCausalLM.from_pretrained(folder)
assert model.can_use_cache
ORTConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
longest = max(map(len, prompts))
pad = tokenizer.pad_token_id
ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
made = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
print(json.dumps({"tokens": made[:, longest:].tolist(), "text": tokenizer("read(x)")["input_ids"]}))
"""


def test_a_folder_says_its_class_and_how_it_was_quantised(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    made = export_optimum(decoder_artifact, tmp_path / "made")
    assert [(model.path, model.loader) for model in made.models] == [
        ("cpu-fp32/model.onnx", "ORTModelForCausalLM"),
        ("cpu-int4/model_quantized.onnx", "ORTModelForCausalLM"),
    ]
    folder = tmp_path / "made" / "cpu-fp32"
    assert json.loads((folder / "ort_config.json").read_text())["opset"] >= 18
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    names = [tensor.name for tensor in onnx.load(folder / "model.onnx").graph.input]
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]


def _dynamic(_: Path, document: dict[str, Any]) -> None:
    quantization = {"mode": "dynamic", "per_channel": True}
    document["recipe"]["targets"][1] |= {"precision": "int8", "quantization": quantization}


def test_dynamic_int8_is_described(decoder_artifact: Path, tmp_path: Path) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", _dynamic)
    export_optimum(changed, tmp_path / "made", targets=["cpu-int4"])
    config = json.loads((tmp_path / "made" / "cpu-int4" / "ort_config.json").read_text())
    assert config["quantization"]["is_static"] is False
    assert config["quantization"]["per_channel"] is True


@pytest.mark.slow
def test_optimum_generates_the_tokens_of_our_own_loop(
    decoder_artifact: Path, tmp_path: Path, optimum_python: Path
) -> None:
    export_optimum(decoder_artifact, tmp_path / "made")
    options = GenerationOptions(tokens=12, stops=frozenset({257}), pad=256)
    for target, name in (("cpu-fp32", "model.onnx"), ("cpu-int4", "model_quantized.onnx")):
        folder = tmp_path / "made" / target
        done = subprocess.run(
            [optimum_python, "-c", SCRIPT, folder, json.dumps(PROMPTS)],
            capture_output=True,
            text=True,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert answer["text"]
        with OrtDecoder(folder / name, threads=1) as decoder:
            own = generate(decoder, PROMPTS, options).tokens
        for ours, theirs in zip(own, answer["tokens"], strict=True):
            assert list(ours) == theirs[: len(ours)]
