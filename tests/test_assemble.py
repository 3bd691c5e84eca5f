"""What a report warns of, by the facts of real stages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.assemble import layers_left_out
from pipeline.runtimes.torch_model import load_torch_model
from tests.decoders import TASK, build_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path


def test_layers_that_config_json_leaves_out_are_named(tmp_path: Path) -> None:
    checkpoint = build_tiny_llama(tmp_path / "checkpoint", num_hidden_layers=3)
    whole = load_torch_model(checkpoint, TASK, "model")
    assert not list(layers_left_out(whole.ignored_weights))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    cut = load_torch_model(checkpoint, TASK, "model")
    assert list(layers_left_out(cut.ignored_weights)) == ["`model.layers.1`, `model.layers.2`"]


def test_a_part_that_the_task_does_not_take_is_no_layer_too_many() -> None:
    names = ["vision.layers.0.weight", "vision.layers.1.weight", "cls.predictions.bias"]
    assert not list(layers_left_out(names))
