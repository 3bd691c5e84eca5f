"""Encoders with decoders for Optimum, transformers.js and others; those themselves in the slow tests."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.bundle.genai import export_genai
from pipeline.bundle.genai_speech_trial import run as run_speech
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import read_graphs
from pipeline.bundle.optimum_layout import export_optimum
from pipeline.bundle.pairs import PairTrial, copy_pair, require_same
from pipeline.bundle.transformers_js import export_transformers_js
from pipeline.errors import ArtifactError, RecipeError
from tests.bundle.conftest import TRANSFORMERS_JS, remake
from tests.bundle.pairs import artifact_of_pair
from tests.pairs import PAD
from tests.recipes import FP32, INT8
from tests.trained.cache import ensure_trained


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact_of_pair(tmp_path_factory.mktemp("whisper"), "whisper", FP32)


def test_both_layouts_hold_every_weight_once(whisper: Path, tmp_path: Path) -> None:
    optimum = export_optimum(whisper, tmp_path / "optimum")
    (model,) = optimum.models
    assert model.loader == "ORTModelForSpeechSeq2Seq"
    assert model.path == "cpu-fp32/encoder_model.onnx, cpu-fp32/decoder_model_merged.onnx"
    script = export_transformers_js(whisper, tmp_path / "web")
    assert script.models[0].path == "onnx/encoder_model.onnx, onnx/decoder_model_merged.onnx"
    assert {path.name for path in (tmp_path / "web/onnx").iterdir()} == {
        "encoder_model.onnx",
        "decoder_model_merged.onnx",
    }
    made = sum(path.stat().st_size for path in (tmp_path / "web/onnx").iterdir())
    own = sum(path.stat().st_size for path in whisper.glob("cpu-fp32/*/model.onnx"))
    assert made < 1.1 * own
    merged = onnx.load(tmp_path / "web/onnx/decoder_model_merged.onnx")
    taken = {value.name: value for value in merged.graph.input}
    axis = taken["past_key_values.0.encoder.key"].type.tensor_type.shape.dim[2]
    assert (
        axis.dim_param
    )  # transformers.js begins with a length of 0, though all sounds are as long


def _shuffled(folder: Path, _: dict[str, Any]) -> None:
    """Values of the source go where its keys belong, as a wrong merge would have it."""
    path = folder / "cpu-fp32/encoder/model.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name.startswith("present.0.encoder."):
                node.output[number] = name.replace("key", "x").replace("value", "key")
        node.output[:] = [name.replace("encoder.x", "encoder.value") for name in node.output]
    onnx.save(model, path)


def test_a_bundle_that_computes_something_else_is_not_delivered(
    whisper: Path, tmp_path: Path
) -> None:
    trials: list[PairTrial] = []
    written: list[tuple[Path, Path]] = []
    for artifact in (whisper, remake(whisper, tmp_path / "wrong", _shuffled)):
        (target,) = read_graphs(artifact, no_pairs="").targets
        folder = tmp_path / f"made-{len(trials)}" / "onnx"
        folder.mkdir(parents=True)
        trials.append(copy_pair(target, folder, axes={}))
        names = ("encoder_model.onnx", "decoder_model_merged.onnx")
        written.append((folder / names[0], folder / names[1]))
    require_same(trials[0], written[0], precision="fp32", where="cpu")
    with pytest.raises(ArtifactError, match=r"encoder_model\.onnx and decoder_model_merged\.onnx"):
        require_same(trials[0], written[1], precision="fp32", where="cpu")


def _config(**values: Any) -> Any:
    def change(folder: Path, _: dict[str, Any]) -> None:
        for path in (
            folder / "cpu-fp32/config.json",
            folder / "cpu-fp32/generation_config.json",
        ):
            said = json.loads(path.read_text()) | values
            path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("change", "export", "told"),
    [
        (
            _config(model_type="pegasus"),
            export_transformers_js,
            "no cache for .* `model_type: peg",
        ),
        (_config(decoder_start_token_id=None), export_optimum, "`decoder_start_token_id`"),
        (_config(), export_genai, "with 50 positions of sound"),
        (_config(model_type="moonshine"), export_genai, "`model_type: moonshine`"),
    ],
)
def test_what_no_consumer_can_take_is_refused(
    whisper: Path, tmp_path: Path, change: Any, export: Any, told: str
) -> None:
    changed = remake(whisper, tmp_path / "changed", change)
    with pytest.raises(RecipeError, match=told):
        export(changed, tmp_path / "made")
    assert not (tmp_path / "made").exists()


FAMILIES: dict[str, dict[str, Any]] = {"bart": {}, "marian": {}, "t5": {"d_kv": 12}, "whisper": {}}
"""The T5's heads are wider than its size over their number, which Optimum takes for granted."""
SCRIPT = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM, ORTModelForSpeechSeq2Seq
folder, asked = sys.argv[1], json.loads(sys.argv[2])
is_heard = "input_features" in asked
model = (ORTModelForSpeechSeq2Seq if is_heard else ORTModelForSeq2SeqLM).from_pretrained(folder)
assert model.can_use_cache and model.decoder.is_merged and model.decoder_with_past is None
feeds = {name: torch.tensor(values) for name, values in asked.items()}
beams = [1] if is_heard else [1, 3]
made = [
    model.generate(**feeds, max_new_tokens=10, do_sample=False, num_beams=n).tolist() for n in beams
]
print(json.dumps(made))
"""


def _sources(family: str) -> dict[str, Any]:
    if family == "whisper":
        generator = np.random.default_rng(3)
        return {"input_features": generator.standard_normal((2, 8, 100)).astype(np.float32)}
    ids = np.array([[5, 6, 7, 8, 9, 257], [70, 71, 257, PAD, PAD, PAD]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).astype(np.int64)}


def _of_checkpoint(checkpoint: Path, sources: dict[str, Any]) -> list[list[list[int]]]:
    import torch
    import transformers

    name = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(checkpoint)
    feeds = {name: torch.from_numpy(array) for name, array in sources.items()}
    beams = [1] if "input_features" in sources else [1, 3]
    return [
        model.generate(**feeds, max_new_tokens=10, do_sample=False, num_beams=number).tolist()
        for number in beams
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    root = tmp_path_factory.mktemp(family)
    return artifact_of_pair(root, family, FP32, INT8, **FAMILIES[family])


@pytest.mark.slow
def test_optimum_and_node_generate_the_tokens_of_the_checkpoint(
    pair: Path, tmp_path: Path, optimum_python: Path, node_packages: Path
) -> None:
    family = pair.parent.name.rstrip("0123456789")
    made = export_transformers_js(pair, tmp_path / "web", packages=node_packages)
    told = f"transformers.js {TRANSFORMERS_JS}: the same tokens from 3 sources"
    assert [model.trial for model in made.models] == [told, told]
    sources = _sources(family)
    export_optimum(pair, tmp_path / "optimum", targets=["cpu-fp32"])
    asked = json.dumps({name: array.tolist() for name, array in sources.items()})
    done = subprocess.run(
        [optimum_python, "-c", SCRIPT, tmp_path / "optimum/cpu-fp32", asked],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer == _of_checkpoint(pair.parent / "checkpoint", sources)


@pytest.mark.slow
def test_genai_writes_down_what_our_own_loop_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    artifact = artifact_of_pair(tmp_path, "whisper", FP32, INT8, max_source_positions=1500)
    made = export_genai(artifact, tmp_path / "made")
    assert all("the same 24 tokens from 3 sounds" in model.trial for model in made.models)
    folder = tmp_path / "made/cpu-fp32"
    (target,) = read_graphs(artifact, ["cpu-fp32"], no_pairs="").targets
    question = {"folder": str(folder), "settings": asdict(read_generation_settings(target))}
    config = json.loads((folder / "genai_config.json").read_text())
    names = config["model"]["decoder"]["inputs"]
    names["cross_past_key_names"], names["cross_past_value_names"] = (
        names["cross_past_value_names"],
        names["cross_past_key_names"],
    )
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert run_speech(question)["problem"]


@pytest.mark.slow
@pytest.mark.trained
def test_a_trained_pair_keeps_its_tokens_in_both_layouts(tmp_path: Path) -> None:
    checkpoint = ensure_trained("pairs").checkpoint
    artifact = artifact_of_pair(tmp_path, "mbart", FP32, INT8, checkpoint=checkpoint)
    export_optimum(artifact, tmp_path / "optimum")
    export_transformers_js(artifact, tmp_path / "web")
