"""Trained models are made once, are whole or not there, and are the same when made again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ArtifactError, StageError
from pipeline.hashing import sha256_bytes
from tests.trained import catalogue
from tests.trained.cache import REPOSITORY, VARIABLE, ensure_trained, find_trained
from tests.trained.catalogue import CATALOGUE, KEY_DIGITS, Entry, code_of, content_key, find_entry

ABSENT = Entry(name="absent", task="none", summary="has no module", least_accuracy=1.0)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(root: Path) -> Path:
    """A place in the cache, filled by hand as a training would."""
    place = root / f"digits-{content_key(find_entry('digits'))[:KEY_DIGITS]}"
    (place / "checkpoint").mkdir(parents=True)
    (place / "checkpoint/config.json").write_bytes(b"{}")
    files = {"checkpoint/config.json": sha256_bytes(b"{}")}
    facts = {"task": "image-classification", "accuracy": 0.99, "files": files}
    (place / catalogue.FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
    return place


def _command_line(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.trained", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {VARIABLE: str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_is_in_the_cache_is_used(made: Path) -> None:
    trained = ensure_trained("digits")
    assert trained.root == made
    assert trained.checkpoint == made / "checkpoint"
    assert trained.accuracy == 0.99
    assert trained.task == "image-classification"


def test_an_empty_cache_has_nothing(root: Path) -> None:
    assert find_trained("digits") is None
    assert not root.exists()


def test_a_split_is_a_folder_or_a_file(made: Path) -> None:
    trained = ensure_trained("digits")
    assert trained.test == made / "test.jsonl"
    (made / "test").mkdir()
    assert trained.test == made / "test"


def test_a_changed_file_is_named(made: Path) -> None:
    (made / "checkpoint/config.json").write_bytes(b"{ }")
    with pytest.raises(ArtifactError, match=r"changed .*: checkpoint/config\.json") as caught:
        ensure_trained("digits")
    assert caught.value.hint == "scripts/train_fixtures --force digits"


@pytest.mark.parametrize("name", [catalogue.FACTS_FILE, "checkpoint/config.json"])
def test_a_lost_file_is_named(made: Path, name: str) -> None:
    (made / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(name)):
        find_trained("digits")


def test_an_unknown_name_is_answered_with_the_known_ones(root: Path) -> None:
    with pytest.raises(
        KeyError, match=r"`digit`; there are: answers, digits, lm, pairs, snippets, tokens"
    ):
        find_trained("digit")


def test_a_failed_training_says_why_and_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The job does not know the name either, and that is how it fails.
    monkeypatch.setattr(catalogue, "CATALOGUE", (*CATALOGUE, ABSENT))
    monkeypatch.setattr(catalogue, "code_of", lambda _: ["job"])
    with pytest.raises(StageError, match=r"training `absent` failed with exit code 1:(.|\n)*KeyE"):
        ensure_trained("absent")
    assert [path.suffix for path in root.iterdir()] == [".lock"]


def test_a_training_that_is_not_accurate_enough_fails(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.trained import digits, job;"
        f"digits.EPOCHS = 1; job.run('digits', Path({str(tmp_path)!r}), 'key')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(r"error: `digits` is right in \d+\.\d% of its test split", done.stderr)
    assert not (tmp_path / catalogue.FACTS_FILE).exists()


def test_a_key_follows_the_code_that_is_run_and_no_other() -> None:
    assert code_of(find_entry("digits")) == ["digits", "job", "training"]
    assert code_of(find_entry("tokens")) == ["job", "standard_library", "tokens", "training"]


def test_keys_differ_by_model_and_by_library(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {content_key(entry) for entry in CATALOGUE}
    assert len(keys) == len(CATALOGUE)
    monkeypatch.setattr(catalogue, "PACKAGES", (*catalogue.PACKAGES, "pytest"))
    assert keys.isdisjoint(content_key(entry) for entry in CATALOGUE)


def test_every_library_of_the_key_is_installed() -> None:
    assert "missing" not in catalogue.package_versions().values()


def test_the_list_says_what_is_there(made: Path) -> None:
    output, errors = _command_line(made.parent, "--list").communicate(timeout=60)
    assert re.search(rf"digits +accuracy 99\.00%  cached  {re.escape(str(made))}", output)
    assert re.search(r"tokens +not trained yet", output)
    assert not errors


def test_the_command_line_reports_a_damaged_model(made: Path) -> None:
    (made / "checkpoint/config.json").unlink()
    process = _command_line(made.parent, "digits")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert not output
    assert errors.startswith("error: ")
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "tokens"])
def test_two_at_once_train_once_and_a_second_training_gives_the_same_files(
    tmp_path: Path, name: str
) -> None:
    processes = [_command_line(tmp_path, name) for _ in range(2)]
    outputs = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    before = json.loads((place / catalogue.FACTS_FILE).read_text(encoding="utf-8"))
    assert sorted("made in" in output for output, _ in outputs) == [False, True]
    assert {output.split()[-1] for output, _ in outputs} == {str(place)}

    identity = place.stat().st_ino
    forced = _command_line(tmp_path, "--force", name)
    assert forced.wait(timeout=1200) == 0
    after = json.loads((place / catalogue.FACTS_FILE).read_text(encoding="utf-8"))
    assert place.stat().st_ino != identity
    assert after["files"] == before["files"]
    assert "checkpoint/model.safetensors" in after["files"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [place]
