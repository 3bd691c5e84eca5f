from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.data.sample_set import load_samples
from pipeline.errors import StageError
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.data.tiny_tokenizer import write_tokenizer
from tests.stages.context import RecordingContext


def _config(**changes: int) -> SamplesConfig:
    fields = {"samples": 30, "seed": 0, "max_length": 48} | changes
    return SamplesConfig(
        source="builtin:stdlib-docstrings", kind="builtin", task="feature-extraction", **fields
    )


def _run(tmp_path: Path, name: str, config: SamplesConfig) -> tuple[Path, dict[str, object]]:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    output = tmp_path / name
    output.mkdir()
    context = RecordingContext(tmp_path)
    facts = SAMPLES.run(config, {"tokenizer": tokenizer}, output, context)
    assert context.steps[-1] == (config.samples, config.samples, "samples")
    return output, dict(facts)


def test_samples_are_written_with_facts_about_their_lengths(tmp_path: Path) -> None:
    output, facts = _run(tmp_path, "a", _config())
    samples = load_samples(output)
    lengths = sorted(entry.extents["sequence"] for entry in samples.entries)
    assert len(samples) == facts["samples"] == 30
    assert lengths[-1] == 48
    assert facts["tokens"] == {
        "min": lengths[0],
        "median": lengths[14],
        "p90": lengths[26],
        "max": 48,
    }
    assert facts["inputs"] == ["attention_mask", "input_ids", "token_type_ids"]
    assert {len(sample["input_ids"]) for sample in samples.read(range(30))} == set(lengths)


def test_the_same_config_gives_the_same_bytes_and_fingerprint(tmp_path: Path) -> None:
    first, facts = _run(tmp_path, "a", _config())
    second, same = _run(tmp_path, "b", _config())
    assert facts == same
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 31}, {"max_length": 40}])
def test_another_config_gives_another_fingerprint(tmp_path: Path, change: dict[str, int]) -> None:
    _, facts = _run(tmp_path, "a", _config())
    _, other = _run(tmp_path, "b", _config(**change))
    assert facts["fingerprint"] != other["fingerprint"]


def test_one_sample_is_enough(tmp_path: Path) -> None:
    _, facts = _run(tmp_path, "a", _config(samples=1))
    assert facts["samples"] == 1


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no tokenizer"):
        SAMPLES.run(_config(), {"tokenizer": tmp_path}, tmp_path, RecordingContext(tmp_path))


def test_a_tokenizer_without_padding_token_is_said_in_the_log(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").unlink()
    context = RecordingContext(tmp_path)
    facts = SAMPLES.run(_config(samples=4), {"tokenizer": tokenizer}, tmp_path, context)
    assert facts["pad_token"] is None
    assert context.lines == ["the checkpoint names no padding token, id 0 is used"]


@pytest.mark.parametrize("change", [{"samples": 0}, {"max_length": 0}])
def test_impossible_numbers_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        _config(**change)
