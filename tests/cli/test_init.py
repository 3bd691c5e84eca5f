"""`convert init`: as a user calls it, from an empty directory."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints import build_text_classifier
from tests.cli.commands import run_convert
from tests.drafting.data import write_reviews, write_rows


def test_it_writes_a_recipe_that_can_be_planned(tmp_path: Path, sentence_encoder: Path) -> None:
    done = run_convert("init", sentence_encoder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "written: recipe.yaml" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: convert recipe.yaml"
    planned = run_convert("plan", "recipe.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    again = run_convert("init", sentence_encoder, cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run_convert("init", sentence_encoder, "--force", cwd=tmp_path).returncode == 0


def test_the_json_form_says_what_was_found(tmp_path: Path) -> None:
    build_text_classifier(tmp_path / "model")
    write_reviews(tmp_path / "reviews.jsonl")
    options = ("--data", "reviews.jsonl", "--label", "stars", "--output", "my recipe.yaml")
    done = run_convert("init", "model", *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["path"] == str(tmp_path / "my recipe.yaml")
    assert said["task"] == "text-classification"
    assert said["other_tasks"] == ["feature-extraction"]
    assert said["targets"][:2] == ["cpu-fp32", "cpu-int8"]
    assert (said["rows"], said["rows_measured"]) == (24, 24)
    assert said["lengths"]["median"] <= said["lengths"]["p90"] <= said["lengths"]["max"]
    assert said["shapes"]["sequence"]["opt"] % 8 == 0
    assert said["data"]["evaluation"]["text"] == "review"


def test_what_is_unclear_is_a_usage_error_with_the_options(tmp_path: Path) -> None:
    build_text_classifier(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"comment": "a", "review": "b", "label": 0}])
    done = run_convert("init", "model", "--data", "rows.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert said["error"]["where"] == "rows.jsonl"
    assert "`comment`, `review`, `label`" in said["error"]["message"]
    assert "--text COLUMN" in said["error"]["hint"]
    assert not (tmp_path / "recipe.yaml").exists()
    options = ("--label", "label", "--no-labels")
    done = run_convert("init", "model", "--data", "rows.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 2


def test_a_checkpoint_that_is_not_here_exits_with_4(tmp_path: Path) -> None:
    for model in ("package:no_such_one/model", "org/not-in-the-cache"):
        done = run_convert("init", model, cwd=tmp_path)
        assert done.returncode == 4, done.stderr
        assert "hint:" in done.stderr
    assert list(tmp_path.iterdir()) == []
