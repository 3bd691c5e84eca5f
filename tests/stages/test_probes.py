from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.data.sample_set import load_samples
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.checkpoints import build_image_classifier, build_multiple_choice, build_text_classifier
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path


def _samples(tmp_path: Path, checkpoint: Path, task: str, source: str) -> Path:
    samples = tmp_path / "samples"
    samples.mkdir()
    config = SamplesConfig(
        source=source,
        kind="builtin",
        task=task,
        samples=6,
        seed=0,
        max_length=None if "image" in task else 32,
        num_choices=4 if task == "multiple-choice" else None,
    )
    SAMPLES.run(config, {"tokenizer": checkpoint}, samples, RecordingContext(tmp_path))
    return samples


def _run(
    tmp_path: Path,
    task: str,
    checkpoint: Path,
    samples: Path,
    lengths: tuple[int, int] | None = (2, 64),
    name: str = "out",
) -> dict[str, Any]:
    output = tmp_path / name
    output.mkdir()
    inputs = {"samples": samples, "tokenizer": checkpoint}
    config = ProbesConfig(task=task, lengths=lengths)
    return dict(PROBES.run(config, inputs, output, RecordingContext(tmp_path)))


def test_probes_are_a_sample_set_that_says_what_each_is(tmp_path: Path) -> None:
    checkpoint = build_text_classifier(tmp_path / "checkpoint")
    task = "text-classification"
    samples = _samples(tmp_path, checkpoint, task, "builtin:stdlib-docstrings")
    facts = _run(tmp_path, task, checkpoint, samples)
    probes = load_samples(tmp_path / "out")
    read = probes.read(range(len(probes)))  # checks every tensor against the index
    assert len(read) == facts["probes"] == sum(facts["kinds"].values())
    assert all(entry.kind and entry.text for entry in probes.entries)
    assert probes.index.inputs == load_samples(samples).index.inputs
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    assert facts["vocabulary"] == size
    assert max(int(sample["input_ids"].max()) for sample in read) == size - 1
    assert "warnings" not in facts


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = build_text_classifier(tmp_path / "checkpoint")
    task = "text-classification"
    samples = _samples(tmp_path, checkpoint, task, "builtin:stdlib-docstrings")
    assert _run(tmp_path, task, checkpoint, samples, name="a") == _run(
        tmp_path, task, checkpoint, samples, name="b"
    )
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("nested", [True, False])
def test_a_config_without_the_size_of_the_vocabulary_is_warned_of(
    tmp_path: Path, nested: bool
) -> None:
    checkpoint = build_text_classifier(tmp_path / "checkpoint")
    task = "text-classification"
    samples = _samples(tmp_path, checkpoint, task, "builtin:stdlib-docstrings")
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    size = config.pop("vocab_size")
    path.write_text(json.dumps(config | ({"text_config": {"vocab_size": size}} if nested else {})))
    facts = _run(tmp_path, task, checkpoint, samples)
    if nested:
        assert facts["vocabulary"] == size
        assert "warnings" not in facts
    else:
        assert 5 < facts["vocabulary"] <= size
        assert "`vocab_size`" in facts["warnings"][0]


def test_choices_have_probes_of_their_shape(tmp_path: Path) -> None:
    checkpoint = build_multiple_choice(tmp_path / "checkpoint")
    task = "multiple-choice"
    samples = _samples(tmp_path, checkpoint, task, "builtin:stdlib-docstrings")
    _run(tmp_path, task, checkpoint, samples)
    probes = load_samples(tmp_path / "out")
    assert all(set(entry.extents) == {"num_choices", "sequence"} for entry in probes.entries)
    assert len(probes.read(range(len(probes)))) == len(probes)


def test_images_have_probes_of_their_size(tmp_path: Path) -> None:
    checkpoint = build_image_classifier(tmp_path / "checkpoint")
    task = "image-classification"
    samples = _samples(tmp_path, checkpoint, task, "builtin:synthetic-images")
    facts = _run(tmp_path, task, checkpoint, samples, None)
    (first,) = load_samples(samples).read([0])
    probes = load_samples(tmp_path / "out")
    for probe in probes.read(range(len(probes))):
        assert probe["pixel_values"].shape == first["pixel_values"].shape
    assert facts["kinds"] == {"plain": 2, "gradient": 1, "noise": 1}
