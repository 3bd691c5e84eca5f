"""`convert verify`: every kind of damage is named, and has its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ArtifactError, RecipeError
from pipeline.hashing import tagged_digest
from pipeline.listing import find_artifact
from pipeline.store import KEY_TAG, Store
from pipeline.verification import verify_published
from tests.cli.artifacts import CONTENT, edit_manifest, publish
from tests.cli.commands import run_convert


def _other_verdict(artifact: Path) -> None:
    edit_manifest(artifact, verdict="failed")


def _unlisted(artifact: Path) -> None:
    """Take a file away and out of the list: only the digest of the list can tell."""
    (artifact / "cpu-fp32" / "model.onnx").unlink()
    (artifact / "cpu-fp32").rmdir()
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    files["files"] = [entry for entry in files["files"] if "cpu" not in entry["path"]]
    edit_manifest(artifact, files=files)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (
        lambda a: (a / "cpu-fp32/model.onnx").write_bytes(CONTENT[::-1]),
        "'cpu-fp32/model.onnx' has SHA-256",
    ),
    "truncated": (
        lambda a: (a / "cpu-fp32/model.onnx").write_bytes(CONTENT[:-1]),
        f"has {len(CONTENT) - 1} bytes, not {len(CONTENT)}",
    ),
    "missing": (lambda a: (a / "cpu-fp32/model.onnx").unlink(), "is missing"),
    "added": (
        lambda a: (a / "rtx-fp16/extra").write_bytes(b""),
        "'rtx-fp16/extra' is not in the manifest",
    ),
    "unlisted": (_unlisted, "`files_digest` is not the digest of `files`"),
    "other form": (
        lambda a: edit_manifest(a, build_digest=99),
        "manifest.json is damaged: `build_digest`",
    ),
    "other verdict": (_other_verdict, "says verdict 'failed', report.json says 'passed'"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_is_a_problem_that_names_its_file(tmp_path: Path, kind: str) -> None:
    artifact = publish(tmp_path / "artifacts")
    assert verify_published(artifact).problems == ()
    damage, words = DAMAGES[kind]
    damage(artifact)
    assert any(words in problem for problem in verify_published(artifact).problems)


@pytest.mark.parametrize(
    "name",
    [
        "latest",
        "tiny",
        "tiny/latest",
        "tiny/0123456789ab",
        "artifacts/tiny",
        "artifacts/tiny/latest",
        "artifacts/tiny/latest/",
        "elsewhere",
    ],
)
def test_an_artifact_is_found_by_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    artifact = publish(tmp_path / "artifacts")
    (tmp_path / "elsewhere").symlink_to("artifacts/tiny/latest")
    monkeypatch.chdir(tmp_path)
    found = find_artifact(name, Path("artifacts"))
    assert found.samefile(artifact)
    assert verify_published(found).problems == ()


def test_a_whole_artifact_exits_with_0(tmp_path: Path) -> None:
    publish(tmp_path / "artifacts")
    done = run_convert("verify", "latest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("whole: ")
    assert "5 files" in done.stdout


def test_damage_is_printed_and_exits_with_3(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "artifacts")
    (artifact / "rtx-fp16" / "model.onnx").unlink()
    done = run_convert("verify", artifact, cwd=tmp_path)
    assert done.returncode == 3
    assert "'rtx-fp16/model.onnx' is missing" in done.stdout
    answer = json.loads(run_convert("verify", artifact, "--json", cwd=tmp_path).stdout)
    assert (answer["exit_code"], answer["is_whole"]) == (3, False)
    assert answer["problems"] == ["'rtx-fp16/model.onnx' is missing"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 7}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "files": NaN}',
    ],
)
def test_a_damaged_manifest_is_damage_and_not_a_defect(tmp_path: Path, content: str) -> None:
    artifact = publish(tmp_path / "artifacts")
    (artifact / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError) as caught:
        verify_published(artifact)
    assert caught.value.exit_code == 3


def test_an_artifact_that_lost_its_manifest_is_damaged(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "artifacts")
    (artifact / "manifest.json").unlink()
    assert find_artifact(str(artifact), tmp_path) == artifact
    with pytest.raises(ArtifactError, match=r"no readable manifest\.json"):
        verify_published(artifact)


def test_what_is_no_artifact_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("folder", "file", "nowhere"):
        with pytest.raises(RecipeError):
            find_artifact(str(tmp_path / name), tmp_path)
    assert run_convert("verify", "folder", cwd=tmp_path).returncode == 2
    assert run_convert("verify", cwd=tmp_path).returncode == 2
    assert run_convert("verify", "latest", "--store", cwd=tmp_path).returncode == 2


def test_latest_of_several_artifacts_must_be_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish(tmp_path / "artifacts", name=name)
    with pytest.raises(RecipeError, match="one, two") as caught:
        find_artifact("latest", tmp_path / "artifacts")
    assert caught.value.hint == "name one: `one` in place of `latest`"


def test_a_latest_that_leads_nowhere_is_damage(tmp_path: Path) -> None:
    shutil.rmtree(publish(tmp_path / "artifacts"))
    with pytest.raises(ArtifactError, match="leads to nothing"):
        find_artifact("latest", tmp_path / "artifacts")


def test_a_failed_build_has_no_latest_and_is_verified_by_its_version(tmp_path: Path) -> None:
    publish(tmp_path / "artifacts", verdict="failed")
    with pytest.raises(RecipeError, match="no version of `tiny` has passed"):
        find_artifact("tiny", tmp_path / "artifacts")
    found = find_artifact("tiny/failed/0123456789ab", tmp_path / "artifacts")
    assert verify_published(found).problems == ()


def _fill_store(root: Path) -> Path:
    store = Store(root)
    preimage = {"stage": "none"}
    with store.workspace() as workspace:
        (workspace.output / "model.onnx").write_bytes(CONTENT)
        record = store.publish(
            key=tagged_digest(KEY_TAG, preimage),
            preimage=preimage,
            output=workspace.output,
            facts={},
            wall_time_s=1.0,
            peak_rss_mib=1.0,
        )
    return root / "v1" / "trees" / record.tree / "model.onnx"


def test_the_store_is_verified_and_its_damage_is_named(tmp_path: Path) -> None:
    file = _fill_store(tmp_path / "store")
    done = run_convert("verify", "--store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 trees, 1 records" in done.stdout
    file.chmod(0o644)
    file.write_bytes(CONTENT[::-1])
    done = run_convert("verify", "--store", tmp_path / "store", "--json", cwd=tmp_path)
    assert done.returncode == 3
    (problem,) = json.loads(done.stdout)["problems"]
    assert file.parent.name in problem
    assert file.exists()  # nothing was set aside


def test_a_store_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = run_convert("verify", "--store", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no store" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"), [("[" * 100_000, "recursion"), ('{"name": "ti', "Unterminated string")]
)
def test_a_manifest_that_is_no_json_is_damaged(tmp_path: Path, content: str, words: str) -> None:
    artifact = publish(tmp_path / "artifacts")
    (artifact / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        verify_published(artifact)
    assert "built again" in caught.value.hint
