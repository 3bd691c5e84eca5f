"""The floor is measured by running the checkpoint itself; nothing is stood in for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pipeline.data.reference_set import load_reference
from pipeline.data.sample_set import load_samples
from pipeline.parity.types import NoiseFloor
from pipeline.stages.noise_floor import NOISE_FLOOR, NoiseFloorConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.checkpoints import build_roberta_encoder, build_text_classifier
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

COMPONENT = {"component": "model"}


def _prepare(tmp_path: Path, checkpoint: Path, task: str) -> dict[str, Path]:
    ports = {"checkpoint": checkpoint, "tokenizer": checkpoint}
    ports |= {name: tmp_path / name for name in ("samples", "probes", "reference")}
    for name in ("samples", "probes", "reference"):
        ports[name].mkdir()
    context = RecordingContext(tmp_path)
    config = SamplesConfig(
        source="builtin:stdlib-docstrings",
        kind="builtin",
        task=task,
        samples=7,
        seed=0,
        max_length=48,
    )
    SAMPLES.run(config, ports, ports["samples"], context)
    PROBES.run(ProbesConfig(task=task, lengths=(2, 64)), ports, ports["probes"], context)
    REFERENCE.run(
        ReferenceConfig(task=task, component="model"), ports, ports["reference"], context
    )
    return ports


def _measure(
    tmp_path: Path, ports: dict[str, Path], task: str, **changes: int
) -> tuple[dict[str, NoiseFloor], dict[str, object]]:
    output = tmp_path / "floor"
    output.mkdir()
    config = NoiseFloorConfig(task=task, component="model", **changes)
    facts = dict(NOISE_FLOOR.run(config, ports, output, RecordingContext(tmp_path)))
    read = json.loads((output / "noise.json").read_text())
    return {floor["output"]: NoiseFloor.model_validate(floor) for floor in read}, facts


def test_the_floor_is_a_few_units_in_the_last_place(tmp_path: Path) -> None:
    ports = _prepare(
        tmp_path, build_text_classifier(tmp_path / "checkpoint"), "text-classification"
    )
    floors, facts = _measure(tmp_path, ports, "text-classification")
    assert list(floors) == ["logits"]
    assert 2.0**-26 < floors["logits"].float64 < 2.0**-18
    assert 0.0 <= floors["logits"].threads < 2.0**-18
    probes = load_samples(ports["probes"])
    values = sum(entry.compared == "values" for entry in probes.entries)
    assert floors["logits"].samples == 7 + values
    assert facts["compared_with"] == "float64"
    assert "warnings" not in facts
    assert torch.get_default_dtype() is torch.float32


def test_the_floor_is_what_float64_says_of_the_worst_sample(tmp_path: Path) -> None:
    """The formula, computed anew in numpy from torch's own outputs."""
    checkpoint = build_text_classifier(tmp_path / "checkpoint")
    ports = _prepare(tmp_path, checkpoint, "text-classification")
    del ports["probes"]
    floors, _ = _measure(tmp_path, ports, "text-classification")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).double().eval()
    samples, reference = load_samples(ports["samples"]), load_reference(ports["reference"])
    singles = reference.read(range(7), ["logits"])["logits"]
    gaps = []
    for sample, single in zip(samples.read(range(7)), singles, strict=True):
        with torch.inference_mode():
            feeds = {name: torch.from_numpy(array[None]) for name, array in sample.items()}
            exact = model(**feeds).logits[0].numpy()
        gaps.append(np.sqrt(np.mean((exact - single) ** 2)))
    unit = np.sqrt(np.mean(np.square(np.stack(singles), dtype=np.float64)))
    assert floors["logits"].float64 == pytest.approx(max(gaps) / unit, rel=1e-6)


def test_long_samples_are_left_to_the_probes_where_there_are_others(tmp_path: Path) -> None:
    ports = _prepare(
        tmp_path, build_text_classifier(tmp_path / "checkpoint"), "text-classification"
    )
    del ports["probes"]
    floors, _ = _measure(tmp_path, ports, "text-classification", samples=3, longest=1)
    assert floors["logits"].samples == 3


def test_a_model_that_float64_cannot_run_says_so_and_has_a_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As code that makes float32 tensors by itself does; torch's own refusal is what is met."""
    from transformers.models.roberta import modeling_roberta

    forward = modeling_roberta.RobertaOutput.forward

    def in_float32(
        self: torch.nn.Module, hidden: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        result: torch.Tensor = forward(self, hidden.to(torch.float32), residual)
        return result

    ports = _prepare(
        tmp_path, build_roberta_encoder(tmp_path / "checkpoint"), "feature-extraction"
    )
    monkeypatch.setattr(modeling_roberta.RobertaOutput, "forward", in_float32)
    floors, facts = _measure(tmp_path, ports, "feature-extraction")
    (warning,) = facts["warnings"]  # type: ignore[misc]
    assert "in float32 only" in warning
    assert "dtype" in warning
    assert facts["compared_with"] == "float32, eager attention"
    assert 0.0 < floors["last_hidden_state"].float64 < 2.0**-18
    assert torch.get_default_dtype() is torch.float32


def test_what_the_checkpoint_makes_no_number_of_says_nothing(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    ports = _prepare(
        tmp_path, build_text_classifier(tmp_path / "checkpoint"), "text-classification"
    )
    path = ports["reference"] / "probes/reference.safetensors"
    tensors = load_file(path)
    tensors["logits/000000"] = np.full_like(tensors["logits/000000"], np.nan)
    save_file(tensors, path)
    floors, _ = _measure(tmp_path, ports, "text-classification")
    probes = load_samples(ports["probes"])
    values = sum(entry.compared == "values" for entry in probes.entries)
    assert floors["logits"].samples == 7 + values - 1
    assert np.isfinite(floors["logits"].float64)
