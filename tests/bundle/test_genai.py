"""`convert export-genai`: ONNX Runtime GenAI loads what is written and chooses the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.bundle.genai import CONFIG_FILE, export_genai
from pipeline.bundle.genai_trial import run
from pipeline.errors import ArtifactError, RecipeError
from pipeline.runtimes.generation import GenerationOptions, generate
from pipeline.runtimes.ort_decoder import OrtDecoder
from tests.bundle.conftest import remake
from tests.cli.commands import run_convert

og = pytest.importorskip("onnxruntime_genai")

PROMPTS = ([67, 68, 69], [70, 71, 220, 72, 73], [74] * 9)
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def bundle(decoder_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both targets, written by the command."""
    folder = tmp_path_factory.mktemp("genai") / "made"
    made = export_genai(decoder_artifact, folder)
    assert [model.target for model in made.models] == ["cpu-fp32", "cpu-int4"]
    assert all("the same 24 tokens" in model.trial for model in made.models)
    assert made.notes == ()
    return folder


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int4"])
def test_a_padded_batch_generates_the_tokens_of_our_own_loop(bundle: Path, target: str) -> None:
    model = og.Model(str(bundle / target))
    search = json.loads((bundle / target / CONFIG_FILE).read_text())
    pad, stops = search["model"]["pad_token_id"], search["model"]["eos_token_id"]
    longest = max(map(len, PROMPTS))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(batch_size=len(PROMPTS), max_length=longest + NEW_TOKENS)
    generator = og.Generator(model, parameters)
    # GenAI masks padding on the right only.
    padded = [[*prompt, *[pad] * (longest - len(prompt))] for prompt in PROMPTS]
    generator.append_tokens(np.array(padded, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    made = [generator.get_sequence(row)[longest:].tolist() for row in range(len(PROMPTS))]
    options = GenerationOptions(tokens=NEW_TOKENS, stops=frozenset(stops), pad=pad)
    with OrtDecoder(bundle / target / "model.onnx", threads=1) as decoder:
        own = generate(decoder, PROMPTS, options).tokens
    for ours, theirs in zip(own, made, strict=True):
        assert list(ours) == theirs[: len(ours)]


def _question(folder: Path) -> dict[str, Any]:
    search = json.loads((folder / CONFIG_FILE).read_text())["model"]
    return {
        "folder": str(folder),
        "vocabulary": search["vocab_size"],
        "positions": search["context_length"],
        "stops": search["eos_token_id"],
        "pad": search["pad_token_id"],
        "has_chat": True,
    }


def _damage_position(folder: Path) -> None:
    """Let GenAI feed the mask as positions, which our own loop does not."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config["model"]["decoder"]["inputs"]["position_ids"]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "positions" if name == "position_ids" else name
    for tensor in model.graph.input:
        if tensor.name == "position_ids":
            tensor.name = "positions"
    onnx.save(model, folder / "model.onnx")


def _damage_tokenizer(folder: Path) -> None:
    """Add what GenAI's tokenizer leaves out."""
    text = json.loads((folder / "tokenizer.json").read_text())
    text["normalizer"] = {"type": "Replace", "pattern": {"String": "read"}, "content": "write"}
    (folder / "tokenizer.json").write_text(json.dumps(text))


def _damage_json(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")


def _mark_answers(folder: Path) -> None:
    """A template whose marks GenAI's engine renders in another way than transformers."""
    template = "{% for message in messages %}{% generation %}\n{{ message['content'] }}{% endgeneration %}\n"
    (folder / "chat_template.jinja").write_text(template + "{% endfor %}")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_mark_answers, "chat template"),
        (_damage_json, "cannot load the bundle"),
        (_damage_position, "cannot generate"),
        (_damage_tokenizer, "its tokenizer makes other tokens"),
    ],
)
def test_a_bundle_that_is_not_right_is_a_problem(
    bundle: Path, tmp_path: Path, damage: Any, told: str
) -> None:
    folder = shutil.copytree(bundle / "cpu-fp32", tmp_path / "copy")
    question = _question(folder)
    damage(folder)
    found = run(question)
    assert told in found["problem"]
    assert ("template" in found.get("hint", "")) == (damage is _mark_answers)


def test_the_command_says_what_it_tried_and_replaces_nothing_foreign(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    words = ("export-genai", str(decoder_artifact), "made", "--target", "cpu-int4", "--json")
    done = run_convert(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)["models"]
    assert made["target"] == "cpu-int4"
    assert "the same 24 tokens after 3 prompts" in made["trial"]
    (tmp_path / "made" / "mine.txt").write_text("mine")
    done = run_convert(*words, "--force", cwd=tmp_path)
    assert done.returncode == 2
    assert "`mine.txt` in it" in done.stdout
    assert (tmp_path / "made" / "mine.txt").is_file()


def _without_tokenizer(folder: Path, _: dict[str, Any]) -> None:
    (folder / "cpu-fp32" / "tokenizer.json").unlink()


def _with_generation(**values: Any) -> Any:
    def change(folder: Path, _: dict[str, Any]) -> None:
        path = folder / "cpu-fp32" / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def test_rules_that_genai_does_not_follow_are_told(decoder_artifact: Path, tmp_path: Path) -> None:
    asks = _with_generation(no_repeat_ngram_size=3, repetition_penalty=1.2, guidance_scale=2.0)
    made = export_genai(
        remake(decoder_artifact, tmp_path / "asking", asks),
        tmp_path / "made",
        targets=["cpu-fp32"],
    )
    (note,) = made.notes
    assert "does not heed `no_repeat_ngram_size`, `guidance_scale` of generation_config" in note


def _for_tensorrt(_: Path, document: dict[str, Any]) -> None:
    document["recipe"]["targets"][0]["provider"] = "tensorrt"


def _of_another_task(_: Path, document: dict[str, Any]) -> None:
    document["recipe"]["model"]["task"] = "fill-mask"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without_tokenizer, "has no tokenizer.json"),
        (_with_generation(eos_token_id=258), "`eos_token_id` is 258, and the model's tokens are 0 to 257"),
        (_with_generation(max_length=65), "`max_length` is 65, and the model has 64 positions"),
        (_with_generation(do_sample=True, temperature=0.0), "`temperature` cannot be 0.0"),
        (_with_generation(top_p=1.5), "`top_p` cannot be 1.5"),
        (_for_tensorrt, "provider `tensorrt`, which GenAI has not"),
        (_of_another_task, "is of task `fill-mask`"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused_and_nothing_is_left(
    decoder_artifact: Path, tmp_path: Path, change: Any, told: str
) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", change)
    with pytest.raises(RecipeError, match=told):
        export_genai(changed, tmp_path / "made", targets=["cpu-fp32"])
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_a_damaged_artifact_and_a_target_that_is_not_there_are_refused(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError, match="there is no target `cpu-int2`, only cpu-fp32, cpu-int4"
    ):
        export_genai(decoder_artifact, tmp_path / "made", targets=["cpu-int2"])
    copy = shutil.copytree(decoder_artifact, tmp_path / "copy")
    (copy / "cpu-fp32" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        export_genai(copy, tmp_path / "made")


def test_weights_in_a_file_of_their_own_come_along(decoder_artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, _: dict[str, Any]) -> None:
        path = folder / "cpu-fp32" / "model.onnx"
        model = onnx.load(path)
        path.unlink()
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")

    changed = remake(decoder_artifact, tmp_path / "changed", change)
    (model,) = export_genai(changed, tmp_path / "made", targets=["cpu-fp32"]).models
    assert "the same 24 tokens" in model.trial
    assert (tmp_path / "made" / "cpu-fp32" / "model.onnx.data").stat().st_size > 50_000
