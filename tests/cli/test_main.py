"""The command line: exit codes, messages, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import CHECKOUT, run_convert
from tests.recipes import FP32, RTX, recipe, write_recipe


def _left_behind(path: Path) -> list[str]:
    """What a command left beside the recipe, the checkpoint and the store."""
    return sorted(p.name for p in path.iterdir() if p.name not in {"recipe.yaml", "store"})


def test_help_shows_commands_examples_and_exit_codes(tmp_path: Path) -> None:
    done = run_convert("--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in ("plan", "schema", "convert recipe.yaml", "Exit codes"):
        assert text in done.stdout


@pytest.mark.parametrize("command", ["run", "plan", "schema"])
def test_every_command_has_help_with_an_example(tmp_path: Path, command: str) -> None:
    done = run_convert(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_schema_is_json_schema(tmp_path: Path) -> None:
    done = run_convert("schema", cwd=tmp_path)
    assert done.returncode == 0
    assert {"recipe", "targets", "gates"} <= set(json.loads(done.stdout)["properties"])


def test_a_misspelt_command_is_named(tmp_path: Path) -> None:
    done = run_convert("plam", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean `plan`?" in done.stderr


def test_a_missing_recipe_is_a_usage_error(tmp_path: Path) -> None:
    done = run_convert("nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert _left_behind(tmp_path) == []


def test_options_may_stand_before_the_recipe(tmp_path: Path) -> None:
    done = run_convert("--quiet", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("option", ["--quiet", "--verbose"])
def test_what_would_mend_a_failed_stage_is_said_even_to_the_quiet(
    tmp_path: Path, sentence_encoder: Path, option: str
) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    data = {"evaluation": {"source": "data.jsonl", "samples": 2}}
    write_recipe(tmp_path / "recipe.yaml", sentence_encoder, data=data)
    done = run_convert("recipe.yaml", option, cwd=tmp_path)
    assert done.returncode == 3
    assert "there is 1 row, 2 are asked for" in done.stderr
    assert "hint: write `samples: 1` or `samples: all`" in done.stderr


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown key": ({"limits_": {}}, 2, "did you mean `limits`?"),
    "wrong type": ({"name": 7}, 2, "name"),
    "name that leaves": ({"name": "../up"}, 2, "name"),
    "missing checkpoint": (
        {"model": {"source": "nowhere", "task": "feature-extraction"}},
        2,
        "no checkpoint directory `nowhere`",
    ),
    "missing package": (
        {"model": {"source": "package:no_such_one/model", "task": "feature-extraction"}},
        4,
        "pip install no-such-one",
    ),
    "capability that does not exist": (
        {"targets": [{**RTX, "compute_capability": ["sm999"]}]},
        2,
        "sm999",
    ),
    "capability RTX does not target": (
        {"targets": [{**RTX, "compute_capability": ["sm90"]}]},
        2,
        "sm90",
    ),
    "no gates": ({"gates": None}, 2, "gates"),
    "misspelt coverage": (
        {
            "gates": {
                "parity": {"cosine_similarity": {"min": 0.5}},
                "coverage": {"quantised_weights": {"min": 1.0}},
            }
        },
        2,
        "quantised_weights",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_have_their_exit_code_and_leave_nothing(
    tmp_path: Path, sentence_encoder: Path, case: str
) -> None:
    changes, code, text = BAD[case]
    write_recipe(tmp_path / "recipe.yaml", sentence_encoder, **changes)
    done = run_convert("recipe.yaml", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert _left_behind(tmp_path) == []


def _damaged(tmp_path: Path, checkpoint: Path) -> Path:
    copied = tmp_path / "store" / "checkpoint"
    shutil.copytree(checkpoint, copied)
    return copied


def _convert(tmp_path: Path, checkpoint: Path) -> Any:
    write_recipe(tmp_path / "recipe.yaml", checkpoint)
    return run_convert("recipe.yaml", cwd=tmp_path)


def test_truncated_weights_are_found_before_anything_runs(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    checkpoint = _damaged(tmp_path, sentence_encoder)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    done = _convert(tmp_path, checkpoint)
    assert done.returncode == 3
    assert "truncated" in done.stderr
    assert "run  " not in done.stderr


def test_pickled_weights_are_refused(tmp_path: Path, sentence_encoder: Path) -> None:
    checkpoint = _damaged(tmp_path, sentence_encoder)
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    done = _convert(tmp_path, checkpoint)
    assert done.returncode == 2
    assert "pickled weights only" in done.stderr


def test_a_missing_tokenizer_is_found_before_anything_runs(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    checkpoint = _damaged(tmp_path, sentence_encoder)
    for path in checkpoint.glob("*"):
        if "token" in path.name or path.name.startswith("vocab"):
            path.unlink()
    done = _convert(tmp_path, checkpoint)
    assert done.returncode == 2
    assert "model.source: the checkpoint has no tokenizer" in done.stderr
    assert "tokenizer.json" in done.stderr
    assert _left_behind(tmp_path) == []


def test_errors_are_json_when_json_is_asked_for(tmp_path: Path, sentence_encoder: Path) -> None:
    document = recipe(sentence_encoder)
    document["targets"][0]["precison"] = "fp32"
    (tmp_path / "recipe.yaml").write_text(json.dumps(document))
    done = run_convert("recipe.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 2
    assert answer["error"]["kind"] == "RecipeError"


def test_a_full_store_says_so_and_the_next_run_goes_on(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    """The store's place is a file: nothing can be written, and nothing is half done."""
    (tmp_path / "blocked").write_text("")
    write_recipe(tmp_path / "recipe.yaml", sentence_encoder, targets=[FP32])
    done = run_convert("recipe.yaml", cwd=tmp_path, CONVERT_STORE=str(tmp_path / "blocked"))
    assert done.returncode == 3
    assert "hint:" in done.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("parity", "text"),
    [
        ({}, "no number would be judged"),
        ({"cosine_similarity": {"max": 1.0}}, "a limit here is a `min`"),
        ({"max_abs_diff": {"min": 0.0}}, "a limit here is a `max`"),
        ({"cosine_similarity": {"min": 2.0}}, "it is never above 1"),
    ],
)
def test_a_gate_that_cannot_fail_or_cannot_hold_is_refused(
    tmp_path: Path, sentence_encoder: Path, parity: dict[str, Any], text: str
) -> None:
    write_recipe(tmp_path / "recipe.yaml", sentence_encoder, gates={"parity": parity})
    done = run_convert("plan", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr


@pytest.mark.parametrize("arguments", [["nowhere.yaml"], ["recipe.yaml", "--bogus"]])
def test_there_is_one_json_document_whatever_happens(tmp_path: Path, arguments: list[str]) -> None:
    done = run_convert(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["exit_code"] == 2
    assert document["artifact"] is None


def test_a_reader_that_goes_away_does_not_change_the_exit_code(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = f"'{sys.executable}' -m pipeline schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize(
    ("command", "is_kept"), [("run", True), ("export-vllm", False), ("generate", False)]
)
def test_an_interruption_promises_only_what_the_store_keeps(
    tmp_path: Path, command: str, is_kept: bool
) -> None:
    code = (
        "import click, signal, sys; from pipeline.cli import main; "
        f"name = {command!r}; stop = lambda: signal.raise_signal(signal.SIGTERM); "
        "main.cli.add_command(click.Command(name, callback=stop)); sys.exit(main.run([name]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert "error: interrupted" in done.stderr
    assert ("the next run goes on from there" in done.stderr) is is_kept
