"""`convert ls`: nothing is hidden, damage least of all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.listing import list_artifacts
from tests.cli.artifacts import edit_manifest, publish
from tests.cli.commands import run_convert


def test_versions_have_verdict_size_targets_and_the_mark_of_latest(tmp_path: Path) -> None:
    output = tmp_path / "artifacts"
    publish(output, "a" * 12, created_at="2026-01-01T00:00:00+00:00")
    publish(output, "b" * 12, created_at="2026-01-02T00:00:00+00:00")
    publish(output, "c" * 12, verdict="failed")
    done = run_convert("ls", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    newest, oldest, failed = (
        next(line for line in lines if letter * 12 in line) for letter in "bac"
    )
    assert newest.split()[:4] == ["*", "tiny", "b" * 12, "passed"]
    assert oldest.split()[:3] == ["tiny", "a" * 12, "passed"]
    assert "cpu-fp32, rtx-fp16" in newest
    assert lines.index(newest) < lines.index(oldest) < lines.index("failed builds:")
    assert lines.index("failed builds:") < lines.index(failed)


def test_the_json_form_has_every_version(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "artifacts")
    publish(tmp_path / "artifacts", "c" * 12, verdict="error")
    done = run_convert("ls", "--json", cwd=tmp_path)
    first, second = json.loads(done.stdout)["artifacts"]
    assert first["path"] == str(artifact.relative_to(tmp_path))
    assert first["is_latest"]
    assert first["targets"] == ["cpu-fp32", "rtx-fp16"]
    assert first["size_bytes"] == sum(
        file.stat().st_size
        for file in artifact.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    )
    assert (second["verdict"], second["has_failed"], second["is_latest"]) == ("error", True, False)


@pytest.mark.parametrize("how", ["no JSON", "missing", "key is missing", "wrong type"])
def test_a_damaged_manifest_is_shown_and_exits_with_3(tmp_path: Path, how: str) -> None:
    whole = publish(tmp_path / "artifacts", "a" * 12)
    damaged = publish(tmp_path / "artifacts", "b" * 12)
    if how == "no JSON":
        (damaged / "manifest.json").write_text("{")
    elif how == "missing":
        (damaged / "manifest.json").unlink()
    else:
        edit_manifest(damaged, recipe=None if how == "key is missing" else {"targets": 7})
    entries = {entry.version: entry for entry in list_artifacts(tmp_path / "artifacts").entries}
    assert entries[whole.name].damage == ""
    assert "manifest.json" in entries[damaged.name].damage or how == "missing"
    assert entries[damaged.name].facts is None
    if how == "missing":
        done = run_convert("ls", cwd=tmp_path)
        assert done.returncode == 3
        assert f"{damaged.name}  DAMAGED" in done.stdout
        assert f"{whole.name}  passed" in done.stdout


def test_a_latest_that_leads_nowhere_is_a_problem(tmp_path: Path) -> None:
    shutil.rmtree(publish(tmp_path / "artifacts"))
    done = run_convert("ls", cwd=tmp_path)
    assert done.returncode == 3
    assert "tiny: `latest` leads to 0123456789ab, which is not there" in done.stderr


def test_the_directory_of_one_artifact_can_be_listed(tmp_path: Path) -> None:
    publish(tmp_path / "artifacts")
    (entry,) = list_artifacts(tmp_path / "artifacts" / "tiny").entries
    assert (entry.name, entry.version, entry.is_latest) == ("tiny", "0123456789ab", True)


def test_an_empty_directory_has_no_artifacts_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert run_convert("ls", cwd=tmp_path).returncode == 2
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "README.md").write_text("")
    done = run_convert("ls", cwd=tmp_path)
    assert done.returncode == 0
    assert "no artifacts in artifacts" in done.stdout


def test_names_in_a_manifest_cannot_steer_the_terminal(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "artifacts")
    edit_manifest(artifact, verdict="passed\x1b[2J\x1b]0;title\x07")
    done = run_convert("ls", cwd=tmp_path)
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
