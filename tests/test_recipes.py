"""The recipes of `recipes/`: each is planned here, and really converted by the slow tests."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pipeline
from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.bundle.triton.source import read_artifact
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from tests import checkpoints
from tests.pairs import build_pair
from tests.trained_models import ensure_trained

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SELF_CONTAINED = ("quickstart", "embeddings-int8", "tensorrt-engines")
LABELLED = {
    "text-classification": (checkpoints.build_text_classifier, "text"),
    "token-classification": (checkpoints.build_token_classifier, "tokens"),
    "question-answering": (checkpoints.build_question_answerer, "question"),
    "image-classification": (checkpoints.build_image_classifier, "image"),
    "causal-lm": (checkpoints.build_causal_language_model, "text"),
    "causal-lm-engines": (checkpoints.build_causal_language_model, "text"),
    "causal-lm-int4": (checkpoints.build_causal_language_model, "text"),
    "seq2seq": (build_pair, "text"),
    "speech-to-text": (partial(build_pair, family="whisper"), "audio"),
}
SECOND = {"causal-lm-int4": "int4-gptq", "causal-lm-engines": "rtx-int4"}
"""A target beside `cpu-fp32`, where it is not `cpu-int8`."""
TRAINED = {
    "text-classification": "snippets",
    "token-classification": "tokens",
    "question-answering": "answers",
    "image-classification": "digits",
}
# Each model is trained first, for a minute, and CI has few.
BY_HAND = ("tokens", "answers")


def _write_data(folder: Path, kind: str) -> Path:
    """Files where the recipe looks for them; a plan only needs them to be there."""
    folder.mkdir()
    if kind == "question":
        path = folder / "squad.jsonl"
        path.write_text('{"question": "?", "context": "a", "answers": "a"}\n')
        return path
    for part in ("test", "calibration"):
        if kind == "image":
            (folder / part / "0").mkdir(parents=True)
            (folder / part / "0/0.png").write_bytes(b"picture")
        else:
            (folder / f"{part}.jsonl").write_text(json.dumps({kind: "a", "label": 0}) + "\n")
    return folder


def test_every_recipe_is_covered_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*SELF_CONTAINED, *LABELLED}


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_a_recipe_that_needs_nothing_is_planned(name: str, tmp_path: Path) -> None:
    store = open_store(BuildOptions(store=tmp_path))
    plan = prepare_plan(load_recipe_file(RECIPES / f"{name}.yaml"), store)
    assert plan.nodes


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_a_recipe_is_planned_with_a_model_and_data_of_ones_own(name: str, tmp_path: Path) -> None:
    build: Callable[..., Path]
    build, kind = LABELLED[name]
    variables = {
        "model": str(build(tmp_path / "checkpoint")),
        "data": str(_write_data(tmp_path / "data", kind)),
    }
    # The tiny checkpoint has fewer positions than the models that the recipe is for.
    changes = tmp_path / "recipe.yaml"
    shapes = {} if kind == "image" else {"sequence": {"min": 4, "opt": 8, "max": 16}}
    changes.write_text(
        json.dumps({"extends": str(RECIPES / f"{name}.yaml"), "shapes": shapes, "benchmark": None})
    )
    store = open_store(BuildOptions(store=tmp_path / "store"))
    plan = prepare_plan(load_recipe_file(changes, variables), store)
    names = {target.name for target in plan.targets}
    assert names >= {"cpu-fp32", SECOND.get(name, "cpu-int8")}


@pytest.mark.trained
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if model in BY_HAND else [])
        for name, model in sorted(TRAINED.items())
    ],
)
def test_a_trained_model_keeps_its_accuracy_by_the_recipe(name: str, tmp_path: Path) -> None:
    trained = ensure_trained(TRAINED[name])
    data = trained.test if name == "question-answering" else trained.root
    variables: dict[str, str | int] = {"model": str(trained.checkpoint), "data": str(data)}
    if name == "question-answering":
        variables["max_tokens"] = 128
    # No gate of theirs is on speed, and what is asked here is accuracy.
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"extends": str(RECIPES / f"{name}.yaml"), "benchmark": None}))
    artifact = pipeline.convert(
        recipe, output=tmp_path / "artifacts", store=tmp_path / "store", variables=variables
    )
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    for target in report["targets"]:
        quality = target["parity"][-1]["parity"]["qualities"][0]
        assert quality["reference_score"] >= 0.9
        assert quality["drop"] <= 0.005


@pytest.mark.trained
def test_a_trained_language_model_keeps_its_perplexity_by_the_recipe(tmp_path: Path) -> None:
    trained = ensure_trained("lm")
    variables = {"model": str(trained.checkpoint), "data": str(trained.root)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"extends": str(RECIPES / "causal-lm.yaml"), "benchmark": None}))
    artifact = pipeline.convert(
        recipe, output=tmp_path / "artifacts", store=tmp_path / "store", variables=variables
    )
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    assert {gate["verdict"] for gate in report["gates"]} == {"passed"}
    gates = {(gate["target"], gate["metric"]): gate for gate in report["gates"]}
    int4 = gates["cpu-int4", "pack_weights.perplexity"]
    assert 1.0 < int4["measured"] < 1.03
    # Weights are there once, though the head is the embedding: 4 bytes each, and the graph.
    size = (artifact.path / "cpu-fp32/model.onnx").stat().st_size
    assert size < 1.05 * 4 * trained.facts["parameters"]
    assert (artifact.path / "cpu-int4/model.onnx").stat().st_size < 0.25 * size
    for name in ("cpu-fp32", "cpu-int4", "cpu-int8"):
        assert not (artifact.path / name / "export.json").exists()
    with pytest.raises(RecipeError, match="keeps no cache between requests"):
        read_artifact(artifact.path)


@pytest.mark.slow
@pytest.mark.trained
def test_a_trained_pair_keeps_its_perplexity_by_the_recipe(tmp_path: Path) -> None:
    trained = ensure_trained("pairs")
    variables = {"model": str(trained.checkpoint), "data": str(trained.root)}
    artifact = pipeline.convert(
        RECIPES / "seq2seq.yaml",
        output=tmp_path / "artifacts",
        store=tmp_path / "store",
        variables=variables,
    )
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    assert {gate["verdict"] for gate in report["gates"]} == {"passed"}
    gates = {(gate["target"], gate["metric"]): gate for gate in report["gates"]}
    int8 = gates["cpu-int8", "decoder.quantize_dynamic.perplexity"]
    assert 0.9 < int8["measured"] < 1.05
    # Every weight is there once, but for the embeddings that both parts look up.
    sizes = [
        (artifact.path / "cpu-fp32" / part / "model.onnx").stat().st_size
        for part in ("encoder", "decoder")
    ]
    assert sum(sizes) < 1.5 * 4 * trained.facts["parameters"]


@pytest.mark.slow
@pytest.mark.trained
def test_a_trained_language_model_in_4_bits_is_best_by_calibration(tmp_path: Path) -> None:
    trained = ensure_trained("lm")
    variables = {"model": str(trained.checkpoint), "data": str(trained.root)}
    recipe = tmp_path / "recipe.yaml"
    base = str(RECIPES / "causal-lm-int4.yaml")
    data = {"evaluation": {"samples": 100}}  # of 32 texts the intervals are too wide
    recipe.write_text(json.dumps({"extends": base, "benchmark": None, "data": data}))
    artifact = pipeline.convert(
        recipe, output=tmp_path / "artifacts", store=tmp_path / "store", variables=variables
    )
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    assert {gate["verdict"] for gate in report["gates"]} == {"passed"}
    worst = {
        gate["target"]: gate["measured"]
        for gate in report["gates"]
        if gate["metric"] in {"quantize_weights.perplexity", "pack_weights.perplexity"}
    }
    assert set(worst) == {"int4-rtn", "int4-gptq", "int4-awq", "int4-mixed"}
    assert 1.0 < worst["int4-mixed"] < worst["int4-gptq"] < worst["int4-rtn"] < 1.02


@pytest.mark.slow
@pytest.mark.trained
def test_engines_of_a_trained_language_model_pass_by_the_recipe(tmp_path: Path) -> None:
    trained = ensure_trained("lm")
    artifact = pipeline.convert(
        RECIPES / "causal-lm-engines.yaml",
        output=tmp_path / "artifacts",
        store=tmp_path / "store",
        variables={"model": str(trained.checkpoint), "data": str(trained.root)},
    )
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "passed"
    gates = {(gate["target"], gate["metric"]): gate["measured"] for gate in report["gates"]}
    for target, products in (("rtx-fp16", "fp16_gemms"), ("rtx-int4", "int4_gemms")):
        assert gates[target, f"engine@{target}-sm89.fused_attention"] == 1.0
        assert gates[target, f"engine@{target}-sm89.{products}"] == 1.0
        assert (artifact.path / target / "model.sm89.engine").stat().st_size > 1 << 20
    assert 1.0 < gates["rtx-int4", "quantize_weights.perplexity"] < 1.03


@pytest.mark.slow
@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_a_recipe_that_needs_nothing_converts(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    # Beside other tests a machine is too busy for gates of speed, and says so; CI times the quickstart.
    untimed = {"extends": str(RECIPES / f"{name}.yaml"), "gates": {"speed": None}}
    recipe.write_text(json.dumps(untimed), encoding="utf-8")
    artifact = pipeline.convert(recipe, output=tmp_path / "artifacts", store=tmp_path / "store")
    assert (artifact.path / "report.html").is_file()
