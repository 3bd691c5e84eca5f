"""Whisper for OpenVINO GenAI: what is written beside the models; OpenVINO itself in the slow test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

from pipeline.bundle.graphs import read_graphs
from pipeline.bundle.openvino_ir import export_openvino
from pipeline.bundle.openvino_speech import DETECTED, prepare_speech
from pipeline.bundle.openvino_speech_work import make_sounds
from pipeline.errors import RecipeError
from pipeline.source.selection import companion_names
from pipeline.stages.fuse import FUSE, FuseConfig
from tests.bundle.conftest import remake, seal
from tests.bundle.pairs import artifact_of_pair
from tests.openvino_environment import PINS, convert, make_environment
from tests.pairs import END, PAD, POSITIONS, SPEECH, TEXTS, VOCABULARY, build_pair
from tests.recipes import FP32, INT8
from tests.stages.context import RecordingContext

REPOSITORY = Path(__file__).resolve().parents[2]
SILENT, TRANSCRIBE, TRANSLATE = 205, 203, 204
LANGUAGES = {"<|en|>": 200, "<|de|>": 201, "<|fr|>": 202}
SAID = {
    "is_multilingual": True,
    "lang_to_id": LANGUAGES,
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
    "no_timestamps_token_id": SILENT,
    "forced_decoder_ids": [[1, None], [2, TRANSCRIBE]],
    "alignment_heads": [[0, 0], [1, 1]],
}


def _checkpoint(folder: Path) -> Path:
    """GenAI makes spectrograms of up to 8,000 Hz, so it wants 16,000 samples a second."""
    import transformers

    checkpoint = build_pair(folder, "whisper", num_mel_bins=80)
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    extractor.save_pretrained(checkpoint)
    _say(checkpoint, SAID)
    return checkpoint


def _say(folder: Path, said: dict[str, Any]) -> None:
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) | said
    path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("whisper") / "checkpoint")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """An artifact whose graphs have the right outputs and compute nothing."""
    folder = tmp_path_factory.mktemp("artifact") / "artifact"
    for part, name, width in (("encoder", "last_hidden_state", 32), ("decoder", "logits", 258)):
        (folder / "cpu-fp32" / part).mkdir(parents=True)
        taken, given = (
            onnx.helper.make_tensor_value_info(
                value, onnx.TensorProto.FLOAT, ["batch", "sequence", width]
            )
            for value in ("x", name)
        )
        node = onnx.helper.make_node("Identity", ["x"], [name])
        graph = onnx.helper.make_graph([node], "graph", [taken], [given])
        onnx.save(onnx.helper.make_model(graph), folder / "cpu-fp32" / part / "model.onnx")
    for name in companion_names(checkpoint):
        shutil.copyfile(checkpoint / name, folder / "cpu-fp32" / name)
    document = {
        "schema_version": 1,
        "name": "pair",
        "version": "0123456789ab",
        "verdict": "passed",
        "reasons": [],
        "created_at": "2026-01-01T00:00:00+00:00",
        "recipe": {"model": {"source": str(checkpoint), "task": SPEECH}, "targets": [FP32]},
        "source": {"source": str(checkpoint), "files": {}},
        "build_digest": "ab" * 32,
        "environment": {},
    }
    return seal(folder, document)


def _prepare(
    whisper: Path, root: Path, said: dict[str, Any], config: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    def change(folder: Path, _: dict[str, Any]) -> None:
        _say(folder / "cpu-fp32", said)
        path = folder / "cpu-fp32/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))

    changed = remake(whisper, root / "changed", change)
    (target,) = read_graphs(changed, no_pairs="").targets
    return prepare_speech(target, root / "made")


def test_all_that_genai_has_numbers_of_its_own_for_is_said(whisper: Path, tmp_path: Path) -> None:
    said = {"suppress_tokens": [3, VOCABULARY, -1], "begin_suppress_tokens": [9, 4]}
    question, notes = _prepare(whisper, tmp_path, said)
    assert notes == []
    assert question["start"] == [PAD, DETECTED, TRANSCRIBE, SILENT]
    made = json.loads((tmp_path / "made/generation_config.json").read_text())
    assert made["suppress_tokens"] == question["suppress_tokens"] == [3]  # others are not there
    assert made["begin_suppress_tokens"] == [9, 4]
    assert made["max_length"] == POSITIONS
    assert (made["eos_token_id"], made["is_multilingual"]) == (END, True)
    heard = json.loads((tmp_path / "made/preprocessor_config.json").read_text())
    assert (heard["feature_size"], heard["nb_max_frames"], heard["n_samples"]) == (80, 100, 16000)
    assert [len(sound) for sound in make_sounds(16000, 16000)] == [5333, 10666, 16000]


@pytest.mark.parametrize(
    ("said", "start", "notes"),
    [
        (
            {"lang_to_id": None, "task_to_id": None, "forced_decoder_ids": None},
            [PAD, SILENT],
            [],
        ),
        (
            {"language": "de", "task": "translate"},
            [PAD, 201, TRANSLATE, SILENT],
            ['generate(..., language="<|de|>", task="translate")'],
        ),
        (
            {"forced_decoder_ids": None},
            [PAD, DETECTED, TRANSCRIBE, SILENT],
            [f"begins texts with {PAD}, the language, {TRANSCRIBE}, {SILENT}, and transformers"],
        ),
        (
            {"bad_words_ids": [[5]], "sequence_bias": [[[1], 2.0]]},
            [PAD, DETECTED, TRANSCRIBE, SILENT],
            ["does not heed `bad_words_ids`, `sequence_bias`"],
        ),
    ],
)
def test_what_genai_does_otherwise_is_told(
    whisper: Path, tmp_path: Path, said: dict[str, Any], start: list[int], notes: list[str]
) -> None:
    question, told = _prepare(whisper, tmp_path, said)
    assert question["start"] == start
    assert len(told) == len(notes)
    for note, part in zip(told, notes, strict=True):
        assert part in note


@pytest.mark.parametrize(
    ("said", "config", "told"),
    [
        ({"no_timestamps_token_id": None}, {}, "does not say `no_timestamps_token_id`"),
        ({"no_timestamps_token_id": VOCABULARY}, {}, "does not say `no_timestamps_token_id`"),
        ({"task_to_id": None, "forced_decoder_ids": None}, {}, "no `transcribe` in `task_to_id`"),
        ({"lang_to_id": {"<|en|>": 999}}, {}, "`<|en|>` is 999"),
        ({}, {"model_type": "moonshine"}, "runs `whisper` only"),
    ],
)
def test_what_genai_would_make_up_is_refused(
    whisper: Path, tmp_path: Path, said: dict[str, Any], config: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        _prepare(whisper, tmp_path, said, config)
    assert told in str(caught.value)


def test_pairs_that_read_are_refused_with_or_without_openvino(
    whisper: Path, tmp_path: Path
) -> None:
    def change(_: Path, document: dict[str, Any]) -> None:
        document["recipe"]["model"]["task"] = TEXTS

    changed = remake(whisper, tmp_path / "changed", change)
    with pytest.raises(RecipeError, match="of these OpenVINO GenAI runs Whisper only"):
        export_openvino(changed, tmp_path / "made")
    assert not (tmp_path / "made").exists()


TRY = """
import json, sys
from pipeline.bundle.openvino_speech_work import try_speech
print(json.dumps(try_speech(json.load(sys.stdin))))
"""
TIME = """
import json, sys
import openvino_genai
from pipeline.bundle.openvino_speech_work import make_sounds
question = json.load(sys.stdin)
pipeline = openvino_genai.WhisperPipeline(question["folder"], "CPU", word_timestamps=True)
config = pipeline.get_generation_config()
config.word_timestamps, config.max_new_tokens, config.ignore_eos = True, 12, True
config.suppress_tokens = [*range(33), *range(127, 258)]
made = pipeline.generate(make_sounds(16000, 16000)[2].tolist(), config)
print(json.dumps([[word.word, word.start_ts, word.end_ts] for word in made.words]))
"""
BEAMS = """
import json, sys
from pathlib import Path
import numpy as np
import openvino_genai
from pipeline.bundle.openvino_speech_work import make_sounds
from pipeline.data.prepare.sounds import load_extractor
from pipeline.runtimes.beam_search import BeamOptions, search_beams
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.openvino_conversion import EXACT
from pipeline.runtimes.seq2seq import SourcedDecoder
from pipeline.runtimes.token_rules import TokenRules
question = json.load(sys.stdin)
pipeline = openvino_genai.WhisperPipeline(question["folder"], "CPU", **EXACT)
config = pipeline.get_generation_config()
config.num_beams, config.max_new_tokens, config.ignore_eos = 3, 12, True
config.no_repeat_ngram_size, config.language = 2**40, "en"
config.suppress_tokens = [*range(33), *range(127, 258)]
config.begin_suppress_tokens = []
sound = make_sounds(16000, 16000)[1]
theirs = pipeline.generate(sound.tolist(), config).texts[0]
spectrogram = load_extractor(Path(question["folder"]))(sound, sampling_rate=16000, return_tensors="np")
rules = TokenRules(suppress=tuple(config.suppress_tokens))
encoder, decoder = (OnnxRuntimeRunner(Path(question[part])) for part in ("encoder", "decoder"))
with encoder, decoder:
    bound = SourcedDecoder(encoder, decoder, {"input_features": spectrogram["input_features"]})
    start = [question["start"][0], question["languages"]["<|en|>"], *question["start"][2:]]
    options = BeamOptions(beams=3, tokens=12, pad=question["pad"], rules=rules)
    ((best, *_),) = search_beams(bound, [start], options)
print(json.dumps([theirs, pipeline.get_tokenizer().decode(list(best.tokens))]))
"""
LOSE = """
import json, sys
import numpy as np
from openvino import opset13
from pipeline.bundle import openvino_speech_work
from pipeline.runtimes import openvino_pair
cut = openvino_pair._cut
def lose(maker):
    states, made = cut(maker)
    zero = opset13.constant(np.float32(0))
    return states, {name: opset13.multiply(each, zero).output(0) for name, each in made.items()}
openvino_pair._cut = lose
print(json.dumps(openvino_speech_work.run(json.load(sys.stdin))))
"""


def _ask(python: Path, question: dict[str, Any], script: str) -> Any:
    done = subprocess.run(
        [python, "-c", script],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _fused(folder: Path, _: dict[str, Any]) -> None:
    """`cpu-fp32` as builds deliver it, with attention as one operator; `cpu-int8` stays as it is."""
    for part in ("encoder", "decoder"):
        place, made = folder / "cpu-fp32" / part, folder.parent / part
        made.mkdir()
        FUSE.run(FuseConfig(), {"model": place}, made, RecordingContext(folder.parent))
        shutil.copyfile(made / "model.onnx", place / "model.onnx")


@pytest.mark.slow
def test_openvino_writes_down_what_our_own_loop_does(checkpoint: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path, *PINS)
    _say(checkpoint, {"suppress_tokens": [*range(128)], "begin_suppress_tokens": [*range(192)]})
    plain = artifact_of_pair(tmp_path / "plain", "whisper", FP32, INT8, checkpoint=checkpoint)
    artifact = remake(plain, tmp_path / "artifact", _fused)
    done = convert(python, "export-openvino", artifact, tmp_path / "made", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert [model["target"] for model in made["models"]] == ["cpu-fp32", "cpu-int8"]
    told = "the same 24 tokens from 3 sounds"
    assert all(told in model["trial"] for model in made["models"])
    assert made["notes"] == []

    folder = tmp_path / "made/cpu-fp32"
    (target,) = read_graphs(artifact, ["cpu-fp32"], no_pairs="").targets
    question, _ = prepare_speech(target, tmp_path / "asked")
    question["folder"] = str(folder)
    assert "problem" not in _ask(python, question, TRY)
    settings = (folder / "generation_config.json").read_text()
    for said, told in (
        ({"suppress_tokens": []}, "and ours is"),
        ({"begin_suppress_tokens": []}, "token 0 after prompt"),
        ({"eos_token_id": 7}, "it ends texts with [7], not with"),
    ):
        _say(folder, said)
        assert told in _ask(python, question, TRY)["problem"]
        (folder / "generation_config.json").write_text(settings)
    theirs, ours = _ask(python, question, BEAMS)
    assert len(theirs) > 8
    assert theirs == ours
    for name in ("cpu-fp32", "cpu-int8"):
        words = _ask(python, {"folder": str(tmp_path / "made" / name)}, TIME)
        assert len("".join(word for word, _, _ in words)) == 12
        assert all(0 <= start <= end <= 1 for _, start, end in words)
    assert "and ours is" in _ask(python, question, LOSE)["problem"]
