"""Fixtures that several packages share: a tiny real checkpoint, and a store that knows it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.decoders import TinyDecoder

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ("tests.trained_models",)

# How fast examples come says something about the machine, which is shared, and nothing about the
# code. In CI the examples are the same every time.
settings.register_profile(
    "shared-machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer BERT sentence encoder with random weights, seeded."""
    from tests.checkpoints import build_sentence_encoder

    return build_sentence_encoder(tmp_path_factory.mktemp("checkpoint") / "encoder")


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> TinyDecoder:
    """A 2-layer Llama with random weights, its samples, reference and export. Copy what you damage."""
    from tests.decoders import make_decoder

    return make_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Path:
    """A store with the results of the tiny checkpoint's targets; copy it, do not write to it."""
    from pipeline.build import BuildOptions, build
    from pipeline.recipe import load_recipe_file
    from tests.recipes import FP32, INT8, RTX, write_recipe

    folder = tmp_path_factory.mktemp("filled")
    gates = {"parity": {"cosine_similarity": {"min": 0.5}}, "allow_not_run": ["device_parity"]}
    recipe = write_recipe(
        folder / "recipe.yaml", sentence_encoder, targets=[FP32, INT8, RTX], gates=gates
    )
    options = BuildOptions(output=folder / "artifacts", store=folder / "store", threads=1)
    result = build(load_recipe_file(recipe), options)
    assert result.verdict == "passed", result.reasons
    return folder / "store"


@pytest.fixture
def store(tmp_path: Path, filled_store: Path) -> Path:
    """A copy of the filled store, to change."""
    return Path(shutil.copytree(filled_store, tmp_path / "store"))


@pytest.fixture(scope="session")
def exported_encoder(filled_store: Path) -> Path:
    """The raw export of the tiny checkpoint: a real graph as torch made it."""
    for path in (filled_store / "v1/ac").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        if '"stage":"export"' in text:
            tree = re.search(r'"tree":"([0-9a-f]{64})"', text)
            assert tree is not None
            return filled_store / "v1/trees" / tree.group(1) / "model.onnx"
    raise AssertionError("the filled store has no export")
