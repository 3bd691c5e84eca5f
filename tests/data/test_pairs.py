"""Samples of encoders with decoders: texts with their targets, sounds, and what is refused of both."""

from __future__ import annotations

import json
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.data.prepare.sounds import read_wav
from pipeline.data.sample_set import SampleSet, load_samples
from pipeline.errors import StageError
from pipeline.stages.decoder_samples import DECODER_SAMPLES, DecoderSamplesConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.pairs import (
    BINS,
    END,
    FRAMES,
    PAD,
    RATE,
    SPEECH,
    TEXTS,
    build_pair,
    write_pairs,
    write_sounds,
    write_tone,
)
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pair(tmp_path_factory.mktemp("speech") / "checkpoint", "whisper")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pair(tmp_path_factory.mktemp("texts") / "checkpoint", "t5")


def _run(stage: Any, config: Any, output: Path, **ports: Path) -> SampleSet:
    output.mkdir()
    stage.run(config, ports, output, RecordingContext(output.parent, threads=1))
    return load_samples(output)


def _samples(tmp_path: Path, checkpoint: Path, data: Path, task: str, **changes: Any) -> SampleSet:
    values = {"samples": 4, "seed": 0, "max_length": 24, "start": PAD} | changes
    config = SamplesConfig(source=data.name, kind="jsonl", task=task, **values)
    return _run(SAMPLES, config, tmp_path / "samples", tokenizer=checkpoint, data=data.parent)


def test_a_target_begins_with_the_decoders_first_token(tmp_path: Path, texts: Path) -> None:
    samples = _samples(tmp_path, texts, write_pairs(tmp_path / "pairs.jsonl"), TEXTS)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    by_text = {f"{row['text']} | {row['target']}": row for row in rows}
    for entry, sample in zip(samples.entries, samples.read(range(4)), strict=True):
        row = by_text[entry.text]
        assert len(sample["input_ids"]) == len(row["text"])
        assert sample["decoder_input_ids"][0] == PAD
        assert len(sample["decoder_input_ids"]) == 1 + len(row["target"])


def test_a_long_target_is_cut_with_its_first_token_counted(tmp_path: Path, texts: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"text": "a", "target": "b" * 50}) + "\n")
    samples = _samples(tmp_path, texts, path, TEXTS, samples=1, max_length=7)
    assert len(samples.read([0])[0]["decoder_input_ids"]) == 7


def test_nothing_to_write_is_refused(tmp_path: Path, texts: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"text": "a", "target": " "}) + "\n")
    with pytest.raises(StageError, match="text in column `target` is blank"):
        _samples(tmp_path, texts, path, TEXTS, samples=1)


def test_a_decoder_is_fed_what_the_encoder_made(tmp_path: Path, texts: Path) -> None:
    """Probes have pasts of none, one, half, and all but the last token; what was read is not fed again."""
    samples = _samples(tmp_path, texts, write_pairs(tmp_path / "pairs.jsonl"), TEXTS)
    made = _run(
        PROBES,
        ProbesConfig(task=TEXTS, lengths=(2, 24)),
        tmp_path / "probes",
        samples=tmp_path / "samples",
        tokenizer=texts,
    )
    assert {entry.kind for entry in made.entries} >= {"rare_tokens", "left_padding", "shortest"}
    config = DecoderSamplesConfig(task=TEXTS, has_pasts=True)
    fed = _run(
        DECODER_SAMPLES, config, tmp_path / "fed", checkpoint=texts, samples=tmp_path / "probes"
    )
    pasts = []
    for probe, sample in zip(made.read(range(len(made))), fed.read(range(len(fed))), strict=True):
        past = sample["past_key_values.0.decoder.key"].shape[1]
        pasts.append(past)
        assert past + len(sample["input_ids"]) == len(probe["decoder_input_ids"])
        np.testing.assert_array_equal(sample["encoder_attention_mask"], probe["attention_mask"])
        source = sample["past_key_values.1.encoder.value"]
        assert source.shape[1] == len(probe["input_ids"])
        assert np.isfinite(source).all()
    assert {0, 1} < set(pasts)
    assert samples.index.inputs["decoder_input_ids"].fill == PAD


def test_sounds_become_spectrograms_of_transformers(tmp_path: Path, speech: Path) -> None:
    from transformers import AutoFeatureExtractor

    data = write_sounds(tmp_path / "data")
    samples = _samples(tmp_path, speech, data, SPEECH)
    extractor = AutoFeatureExtractor.from_pretrained(speech)
    for entry, sample in zip(samples.entries, samples.read(range(4)), strict=True):
        name = entry.text.partition(" | ")[0]
        with wave.open(str(data.parent / name)) as file:
            raw = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
        wanted = extractor(raw.astype(np.float32), sampling_rate=RATE, return_tensors="np")
        assert sample["input_features"].shape == (BINS, FRAMES)
        np.testing.assert_allclose(
            sample["input_features"], wanted["input_features"][0], atol=1e-6
        )
        assert sample["decoder_input_ids"][0] == PAD
        assert END not in sample["decoder_input_ids"]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_integers_of_every_width_are_read(tmp_path: Path, width: int) -> None:
    values = np.array([0.0, 0.5, -0.5, -1.0])
    kind = {1: "u1", 2: "<i2", 4: "<i4"}[width]
    raw = (values * 2 ** (8 * width - 1) + (128 if width == 1 else 0)).astype(kind)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, width, RATE, 0, "NONE", ""))
        file.writeframes(np.repeat(raw, 2).tobytes())  # both channels alike
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav", "a.wav", RATE, ""), values)


def test_other_sounds_are_refused_with_the_way_out(tmp_path: Path, speech: Path) -> None:
    data = write_sounds(tmp_path / "data", count=1)

    def refuse(name: str) -> StageError:
        data.write_text(json.dumps({"audio": name, "text": "a"}) + "\n")
        with pytest.raises(StageError) as caught:
            _samples(tmp_path, speech, data, SPEECH, samples=1)
        (tmp_path / "samples").rmdir()
        return caught.value

    folder = data.parent
    assert "ffmpeg" in refuse("a.mp3").hint
    assert "there is no sound `b.wav`" in str(refuse("b.wav"))
    (folder / "c.wav").write_bytes(b"RIFF, but no more")
    assert "`c.wav` cannot be read" in str(refuse("c.wav"))
    write_tone(folder / "d.wav", pitch=300.0, seconds=0.1, rate=16000)
    error = refuse("d.wav")
    assert "16000 samples a second, and the model wants 8000" in str(error)
    assert "-ar 8000" in error.hint
    assert "leads out of the folder" in str(refuse("../d.wav"))
