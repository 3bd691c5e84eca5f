"""Recipes that make several, and variables, on the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import GateFailed, RecipeError
from tests.cli.commands import run_convert
from tests.recipes import FP32, INT8, recipe

TOOLS = {"matrix": {"axes": {"tool": ["onnxsim", "onnxslim"]}}}


def write(path: Path, checkpoint: Path, **changes: Any) -> Path:
    """A recipe that makes two of one target each, or what `changes` say."""
    path.write_text(json.dumps(recipe(checkpoint, **changes)), encoding="utf-8")
    return path


def several(path: Path, checkpoint: Path, **changes: Any) -> Path:
    return write(
        path,
        checkpoint,
        **{
            "name": "tiny-${kind}",
            "vars": {"samples": 6},
            "matrix": {"axes": {"kind": ["a", "b"]}},
            "data": {
                "evaluation": {"source": "builtin:stdlib-docstrings", "samples": "${samples}"}
            },
            "targets": [
                FP32 | TOOLS | {"name": "cpu-${tool}", "simplify": {"tool": "${tool}"}},
                INT8,
            ],
            **changes,
        },
    )


def test_plan_shows_every_recipe_with_its_values_targets_and_nodes(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    several(tmp_path / "recipe.yaml", sentence_encoder)
    done = run_convert("plan", "recipe.yaml", "--explain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "tiny-a: kind=a",
        "tiny-b: kind=b",
        "target cpu-onnxsim: tool=onnxsim",
        "target cpu-onnxslim: tool=onnxslim",
        "run simplify@cpu-onnxslim <- export",
        "but `tiny-a` makes it before",
    ):
        assert line in lines, done.stdout
    assert lines.index("tiny-a: kind=a") < lines.index("tiny-b: kind=b")
    assert lines[-1].startswith("2 recipes, ")


def test_plan_as_json_has_recipes_targets_and_all_nodes(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    several(tmp_path / "recipe.yaml", sentence_encoder)
    done = run_convert("plan", "recipe.yaml", "--json", "--var", "samples=4", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert [(each["name"], each["values"]) for each in document["recipes"]] == [
        ("tiny-a", {"kind": "a"}),
        ("tiny-b", {"kind": "b"}),
    ]
    assert document["recipes"][0]["targets"] == [
        {"name": "cpu-onnxsim", "values": {"tool": "onnxsim"}},
        {"name": "cpu-onnxslim", "values": {"tool": "onnxslim"}},
        {"name": "cpu-int8", "values": {}},
    ]
    samples = [node for node in document["nodes"] if node["name"] == "samples"]
    assert [node["recipe"] for node in samples] == ["tiny-a", "tiny-b"]
    assert samples[0]["config"]["samples"] == 4


@pytest.mark.parametrize("arguments", [("--var", "n"), ("--var", "a=1", "--var", "a=2")])
def test_a_variable_that_is_written_wrongly_is_a_usage_error(
    tmp_path: Path, sentence_encoder: Path, arguments: tuple[str, ...]
) -> None:
    several(tmp_path / "recipe.yaml", sentence_encoder)
    done = run_convert(*arguments, "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "--var" in done.stderr


def test_an_unknown_variable_is_a_usage_error(tmp_path: Path, sentence_encoder: Path) -> None:
    several(tmp_path / "recipe.yaml", sentence_encoder)
    done = run_convert("--var", "sample=plan", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no variable `sample` - did you mean `samples`?" in done.stderr


def test_a_limit_for_no_stage_is_refused_with_its_place(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    limits = {"stages": {"export": {"time_s": 600}, "simplfy": {"time_s": 60}}}
    write(tmp_path / "recipe.yaml", sentence_encoder, limits=limits)
    done = run_convert("plan", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "limits.stages.simplfy: there is no stage `simplfy` - did you mean `simplify`?" in (
        done.stderr
    )
    assert "recipe.yaml:1:" in done.stderr


def test_nothing_is_built_when_one_of_the_recipes_cannot_be(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    models = {"source": "${path}", "task": "feature-extraction"}
    include = [{"kind": "a", "path": str(sentence_encoder)}, {"kind": "b", "path": "nowhere"}]
    several(tmp_path / "recipe.yaml", sentence_encoder, model=models, matrix={"include": include})
    done = run_convert("recipe.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "RecipeError"
    assert "no checkpoint directory `nowhere`" in done.stderr
    assert not (tmp_path / "artifacts").exists()


def test_all_are_built_and_the_worst_exit_code_counts(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    """The second one fails its gate, the first and the third are published all the same."""
    include = [
        {"kind": "a", "least": 0.8},
        {"kind": "b", "least": 1.0},
        {"kind": "c", "least": 0.8},
    ]
    several(
        tmp_path / "recipe.yaml",
        sentence_encoder,
        matrix={"include": include},
        targets=[FP32, INT8],
        gates={"parity": {"cosine_similarity": {"min": "${least}"}}},
    )
    done = run_convert("recipe.yaml", "--json", cwd=tmp_path, CONVERT_STORE=str(store))
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["exit_code"]) == ("failed", 1)
    verdicts = [(each["recipe"], each["verdict"]) for each in document["builds"]]
    assert verdicts == [("tiny-a", "passed"), ("tiny-b", "failed"), ("tiny-c", "passed")]
    for each in document["builds"]:
        kept = (Path(each["artifact"]) / "recipe.yaml").read_text(encoding="utf-8")
        assert kept.startswith("# Written out by convert from `recipe.yaml`.")
        assert f"name: {each['recipe']}\n" in kept
    assert "=== tiny-b (2 of 3): kind=b, least=1.0" in done.stderr


def test_a_checkpoint_that_does_not_fit_is_said_with_its_combination(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    """`model.task` stands once, whatever the matrix puts beside it."""
    several(
        tmp_path / "recipe.yaml",
        sentence_encoder,
        model={"source": str(sentence_encoder), "task": "${kind}"},
        matrix={"axes": {"kind": ["feature-extraction", "image-classification"]}},
        targets=[FP32],
    )
    for command in (["plan", "recipe.yaml"], ["recipe.yaml"]):
        done = run_convert(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert (
            "(in recipe `tiny-image-classification`, kind=image-classification)" in done.stderr
        ), done.stderr


def test_python_takes_one_recipe_or_all(
    tmp_path: Path, sentence_encoder: Path, store: Path
) -> None:
    path = several(tmp_path / "recipe.yaml", sentence_encoder, targets=[FP32, INT8])
    with pytest.raises(RecipeError, match="makes 2 recipes"):
        pipeline.convert(path)
    artifacts = pipeline.convert_all(path, output=tmp_path / "out", store=store)
    assert [artifact.name for artifact in artifacts] == ["tiny-a", "tiny-b"]
    hard = {"parity": {"cosine_similarity": {"min": 1.0}}}
    several(path, sentence_encoder, targets=[INT8], gates=hard)
    with pytest.raises(GateFailed):
        pipeline.convert_all(path, output=tmp_path / "out", store=store)
