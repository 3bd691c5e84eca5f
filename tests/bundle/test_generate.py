"""`convert generate`: an artifact writes what its checkpoint writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pipeline.bundle.generate import TextRequest, generate_texts
from pipeline.errors import ArtifactError, RecipeError
from pipeline.source.selection import companion_names
from pipeline.stages.export import EXPORT, ExportConfig
from tests.bundle.conftest import remake, seal
from tests.cli.commands import run_convert
from tests.decoders import POSITIONS
from tests.pairs import RATE, SPEECH, TEXTS, build_pair, write_tone
from tests.recipes import FP32
from tests.stages.context import RecordingContext

PROMPTS = ("one two three", "x")


def _checkpoint(artifact: Path) -> str:
    return str(json.loads((artifact / "manifest.json").read_text())["recipe"]["model"]["source"])


def _theirs(kind: str, artifact: Path, prompt: str, **options: Any) -> str:
    """The text that `transformers` makes of the checkpoint."""
    import torch
    import transformers

    path = _checkpoint(artifact)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = getattr(transformers, kind).from_pretrained(path).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        found = model.generate(**inputs, do_sample=False, **options)[0]
    new = found if model.config.is_encoder_decoder else found[inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_it_writes_what_the_checkpoint_writes(decoder_artifact: Path, tmp_path: Path) -> None:
    done = run_convert(
        *("generate", decoder_artifact, "--tokens", "12", "--json"),
        *(word for prompt in PROMPTS for word in ("--prompt", prompt)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["target"] == "cpu-fp32"
    for text, prompt in zip(said["texts"], PROMPTS, strict=True):
        assert text["prompt"] == prompt
        assert text["text"] == _theirs(
            "AutoModelForCausalLM", decoder_artifact, prompt, max_new_tokens=12
        )
        assert len(text["tokens"]) == 12 or text["ended"] == "stop"
    assert said["ttft_ms"] > 0


def test_beams_seeds_and_targets_are_heeded(decoder_artifact: Path) -> None:
    def write(**options: Any) -> tuple[tuple[int, ...], ...]:
        request = TextRequest(prompts=PROMPTS, tokens=10, threads=1, **options)
        made = generate_texts(decoder_artifact, request)
        return tuple(text.tokens for text in made.texts)

    greedy = write()
    assert write(beams=5) != greedy
    drawn = write(temperature=2.0, seed=1)
    assert drawn == write(temperature=2.0, seed=1)
    assert drawn != write(temperature=2.0, seed=2)
    assert write(is_chat=True) != greedy
    made = generate_texts(decoder_artifact, TextRequest(prompts=PROMPTS, target="cpu-int4"))
    assert made.precision == "int4"
    room = POSITIONS - len(PROMPTS[0])  # a byte is a token, and 64 are more than there are places
    assert all(len(text.tokens) == room or text.ended == "stop" for text in made.texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ("a" * 70,)}, "a prompt of 70 tokens is longer than the 64 positions"),
        ({"prompts": ("abcd",), "tokens": 61}, "4 tokens and 61 new ones are longer than the 64"),
        ({"prompts": ("",)}, "has no token"),
        ({"prompts": ("ab\udce9",)}, "is no Unicode: character 3"),  # as Python reads b"ab\xe9"
        ({}, "the model reads"),
        ({"prompts": ("a",), "target": "gpu"}, "no target `gpu`, only cpu-fp32, cpu-int4"),
        ({"prompts": ("a",), "top_k": 3}, "nothing is drawn without a temperature"),
        ({"prompts": ("a",), "beams": 2, "temperature": 1.0}, "do not go together"),
        ({"prompts": ("a",), "length_penalty": 2.0}, "are of beam search, and there is none"),
        ({"prompts": ("a",), "early_stopping": True}, "are of beam search, and there is none"),
    ],
)
def test_what_cannot_be_written_is_refused(
    decoder_artifact: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        generate_texts(decoder_artifact, TextRequest(**options))


def _asking(artifact: Path, folder: Path, **said: Any) -> Path:
    """The artifact, whose checkpoint asks for this too."""

    def write(made: Path, _document: dict[str, Any]) -> None:
        path = made / "cpu-fp32/generation_config.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | said))

    return remake(artifact, folder, write)


def test_what_the_checkpoint_asks_of_tokens_is_heeded(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    plain = generate_texts(decoder_artifact, TextRequest(prompts=PROMPTS, tokens=12))
    first = sorted({text.tokens[0] for text in plain.texts})
    said = {
        "repetition_penalty": 1.7,
        "no_repeat_ngram_size": 2,
        "begin_suppress_tokens": first,
        "min_new_tokens": 12,
    }
    asking = _asking(decoder_artifact, tmp_path / "asking", **said, guidance_scale=1.5)
    done = run_convert(
        *("generate", asking, "--tokens", "12", "--json"),
        *(word for prompt in PROMPTS for word in ("--prompt", prompt)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for text, prompt in zip(found["texts"], PROMPTS, strict=True):
        assert text["text"] == _theirs(
            "AutoModelForCausalLM", decoder_artifact, prompt, max_new_tokens=12, **said
        )
    assert [text["text"] for text in found["texts"]] != [text.text for text in plain.texts]
    assert "`guidance_scale`" in found["notes"][0]
    asked = TextRequest(prompts=PROMPTS, tokens=12, is_plain=True)
    assert generate_texts(asking, asked).texts == plain.texts


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"repetition_penalty": 0}, "`repetition_penalty` cannot be 0"),
        ({"no_repeat_ngram_size": "two"}, "`no_repeat_ngram_size` is no number"),
        ({"suppress_tokens": 7}, "`suppress_tokens` is no list of tokens: 7"),
        ({"bad_words_ids": [7]}, "`bad_words_ids` is no list of lists"),
        ({"forced_eos_token_id": 9999}, "`forced_eos_token_id` is 9999, and the model's tokens"),
        ({"suppress_tokens": list(range(300))}, "generation_config.json forbids every one"),
    ],
)
def test_what_cannot_be_asked_of_tokens_is_refused(
    decoder_artifact: Path, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    asking = _asking(decoder_artifact, tmp_path / "asking", **said)
    with pytest.raises(RecipeError, match=message):
        generate_texts(asking, TextRequest(prompts=PROMPTS, tokens=4))


def test_artifacts_that_write_no_texts_are_refused(
    artifact: Path, decoder_artifact: Path, tmp_path: Path
) -> None:
    asked = TextRequest(prompts=PROMPTS)
    with pytest.raises(RecipeError, match="`feature-extraction`, and writes no texts"):
        generate_texts(artifact, asked)

    def strip(folder: Path, _document: dict[str, Any]) -> None:
        (folder / "cpu-fp32/tokenizer.json").unlink()
        (folder / "cpu-int4/chat_template.jinja").unlink()

    bare = remake(decoder_artifact, tmp_path / "bare", strip)
    with pytest.raises(RecipeError, match=r"`cpu-fp32` has no tokenizer.json"):
        generate_texts(bare, asked)
    with pytest.raises(RecipeError, match="no chat template"):
        generate_texts(bare, TextRequest(prompts=PROMPTS, target="cpu-int4", is_chat=True))
    with (bare / "cpu-int4/model.onnx").open("ab") as graph:
        graph.write(b"x")
    with pytest.raises(ArtifactError, match="is not what its manifest says"):
        generate_texts(bare, asked)


def _pair_artifact(root: Path, family: str, task: str) -> Path:
    checkpoint = build_pair(root / "checkpoint", family)
    folder = root / "artifact/cpu-fp32"
    context = RecordingContext(root, threads=2)
    for part in ("encoder", "decoder"):
        (folder / part).mkdir(parents=True)
        config = ExportConfig(task=task, component=part)
        EXPORT.run(config, {"checkpoint": checkpoint}, folder / part, context)
    for name in companion_names(checkpoint):
        shutil.copyfile(checkpoint / name, folder / name)
    document = {
        "schema_version": 1,
        "name": family,
        "version": "0123456789ab",
        "verdict": "passed",
        "reasons": [],
        "created_at": "2026-01-01T00:00:00+00:00",
        "build_digest": "ab" * 32,
        "recipe": {"model": {"source": str(checkpoint), "task": task}, "targets": [FP32]},
        "source": {"source": str(checkpoint), "files": {}},
        "environment": {},
    }
    return seal(root / "artifact", document)


@pytest.mark.slow
def test_an_encoder_with_a_decoder_answers_as_its_checkpoint(tmp_path: Path) -> None:
    made = _pair_artifact(tmp_path, "t5", TEXTS)
    for beams in (1, 3):
        asked = TextRequest(prompts=PROMPTS, tokens=9, beams=beams)
        for text in generate_texts(made, asked).texts:
            wanted = _theirs(
                "AutoModelForSeq2SeqLM", made, text.prompt, max_new_tokens=9, num_beams=beams
            )
            assert text.text == wanted
            assert (text.score is None) == (beams == 1)


@pytest.mark.slow
def test_a_sound_is_written_down(tmp_path: Path) -> None:
    made = _pair_artifact(tmp_path, "whisper", SPEECH)
    sounds = tuple(
        write_tone(tmp_path / f"{pitch}.wav", pitch=pitch, seconds=0.4, rate=RATE)
        for pitch in (220.0, 440.0)
    )
    found = generate_texts(made, TextRequest(sounds=sounds, tokens=8))
    assert [text.prompt for text in found.texts] == [str(path) for path in sounds]
    (alone,) = generate_texts(made, TextRequest(sounds=sounds[1:], tokens=8)).texts
    assert alone.tokens == found.texts[1].tokens
    with pytest.raises(RecipeError, match="the model listens"):
        generate_texts(made, TextRequest(prompts=PROMPTS))


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_a_summary_is_written_by_the_rules_of_its_checkpoint(tmp_path: Path, beams: int) -> None:
    """What `facebook/bart-large-cnn` asks for."""
    made = _pair_artifact(tmp_path / "bart", "bart", TEXTS)
    said = {
        "forced_bos_token_id": 65,
        "forced_eos_token_id": 257,
        "no_repeat_ngram_size": 3,
        "min_length": 6,
    }
    asking = _asking(made, tmp_path / "asking", **said)
    asked = TextRequest(prompts=PROMPTS, tokens=9, beams=beams)
    for text in generate_texts(asking, asked).texts:
        assert text.tokens[0] == 65
        assert text.text == _theirs(
            "AutoModelForSeq2SeqLM", made, text.prompt, max_new_tokens=9, num_beams=beams, **said
        )


SPOKEN = {
    "lang_to_id": {"<|en|>": 1, "<|de|>": 2, "<|fr|>": 3},
    "task_to_id": {"transcribe": 4, "translate": 5},
    "no_timestamps_token_id": 6,
    "suppress_tokens": [1, 2, 3, 4, 5, 6, 40, 41, 42],
    "begin_suppress_tokens": [50, 51],
    "is_multilingual": True,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        {"forced_decoder_ids": [[1, None], [2, 4]]},
        {"language": "german", "task": "translate"},
        {"language": "<|fr|>"},
        {},
    ],
)
def test_a_sound_begins_with_its_language_and_the_task(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    import torch
    import transformers

    made = _pair_artifact(tmp_path, "whisper", SPEECH)
    checkpoint = Path(_checkpoint(made))
    path = checkpoint / "generation_config.json"
    known = json.loads(path.read_text())
    # Of a file that says this, transformers takes no names that it does not know.
    known.pop("_from_model_config")
    path.write_text(json.dumps(known | SPOKEN | said))
    asking = _asking(made, tmp_path / "asking", **SPOKEN, **said)
    sound = write_tone(tmp_path / "one.wav", pitch=330.0, seconds=0.4, rate=RATE)
    (text,) = generate_texts(asking, TextRequest(sounds=(sound,), tokens=8)).texts

    from pipeline.data.prepare.sounds import read_wav

    model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
    samples = read_wav(sound, sound.name, RATE, str(tmp_path))
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        found = model.generate(features, max_new_tokens=8, do_sample=False)[0].tolist()
    assert list(text.tokens) == found[: len(text.tokens)]


def test_tokens_that_the_model_lacks_are_refused(decoder_artifact: Path, tmp_path: Path) -> None:
    """A tokenizer to which a token was added, and no row to the table of embeddings."""

    def add(folder: Path, _document: dict[str, Any]) -> None:
        path = folder / "cpu-fp32/tokenizer.json"
        made = tokenizers.Tokenizer.from_file(str(path))
        made.add_special_tokens(["<|new|>"])
        made.save(str(path))

    changed = remake(decoder_artifact, tmp_path / "changed", add)
    made = generate_texts(changed, TextRequest(prompts=("a",), tokens=2))
    assert made.texts
    with pytest.raises(RecipeError, match=r"has token \d+, and the model's tokens are 0 to"):
        generate_texts(changed, TextRequest(prompts=("a<|new|>",), tokens=2))
