from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.data_source import DataSource, resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.errors import ArtifactError, EnvironmentMissing, RecipeError
from pipeline.recipe.types import DataSpec
from tests.data.prepared import write_lines

WHERE = "recipe.yaml:9:15: data.evaluation.source"


def _resolve(directory: Path, source: str, **spec: Any) -> DataSource:
    written = DataSpec.model_validate_json(json.dumps({"source": source, "samples": 1} | spec))
    memory = DigestMemory(directory / "memory")
    return resolve_data(written, directory=directory, memory=memory, where=WHERE)


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_a_file_is_shown_to_the_stage_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/a.jsonl", {"text": "a"})
    write_lines(tmp_path / "data/b.jsonl", {"text": "b"})
    found = _resolve(tmp_path, "data/a.jsonl")
    assert (found.kind, found.root) == ("jsonl", tmp_path / "data")
    found.materialise(tmp_path / "shown")
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["a.jsonl"]
    assert (tmp_path / "shown/a.jsonl").read_text() == '{"text": "a"}\n'


def test_the_digest_is_of_names_and_contents_not_of_places(tmp_path: Path) -> None:
    digests = []
    for folder, text in (("one", "a"), ("two", "a"), ("three", "b")):
        write_lines(tmp_path / folder / "a.jsonl", {"text": text})
        digests.append(_resolve(tmp_path, f"{folder}/a.jsonl").digest())
    assert digests[0] == digests[1] != digests[2]
    builtin = {
        _resolve(tmp_path, source).digest()
        for source in ("builtin:stdlib-docstrings", "builtin:synthetic-images")
    }
    assert len(builtin) == 2


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    found = _resolve(tmp_path, "a.jsonl")
    found.require_unchanged()
    write_lines(path, {"text": "b"})
    os.utime(path, (1, 1))
    with pytest.raises(ArtifactError, match=r"`a\.jsonl` changed"):
        found.require_unchanged()


def test_images_of_a_table_are_files_of_it_when_their_column_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/a.jsonl", {"image": "x/1.png"})
    _picture(tmp_path / "data/x/1.png")
    _picture(tmp_path / "data/.hidden/2.png")
    assert set(_resolve(tmp_path, "data/a.jsonl", image="image").files) == {"a.jsonl", "x/1.png"}
    assert set(_resolve(tmp_path, "data/a.jsonl").files) == {"a.jsonl"}


def test_a_folder_of_images_holds_nothing_else(tmp_path: Path) -> None:
    _picture(tmp_path / "data/cat/1.PNG")
    _picture(tmp_path / "data/dog/2.jpeg")
    (tmp_path / "data/notes.txt").write_text("x")
    found = _resolve(tmp_path, "data")
    assert found.kind == "images"
    assert set(found.files) == {"cat/1.PNG", "dog/2.jpeg"}


def test_a_snapshot_of_the_hub_is_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of huggingface_hub's cache; the tests' hub is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "hub/datasets--org--tiny", "c" * 40
    write_lines(repository / "snapshots" / commit / "test.jsonl", {"text": "a"})
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    assert set(_resolve(tmp_path, "datasets:org/tiny").files) == {"test.jsonl"}
    assert set(_resolve(tmp_path, f"datasets:org/tiny@{commit}").files) == {"test.jsonl"}
    with pytest.raises(RecipeError, match="neither a folder") as caught:
        _resolve(tmp_path, "datasets:org/other")
    assert caught.value.where == WHERE
    assert "hf download --repo-type dataset org/other" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        ("missing.jsonl", {}, r"no file or folder `missing\.jsonl`"),
        ("evaluaton.jsonl", {}, r"did you mean `evaluation\.jsonl`"),
        ("empty.jsonl", {}, "is empty"),
        ("a.xlsx", {}, r"ends in `\.xlsx`, which cannot be read"),
        ("nameless", {}, "no ending that says what it is"),
        ("folder", {}, "no images in the folder"),
        ("tables", {}, r"source: tables/a\.jsonl"),
        ("mixed", {}, r"`mixed` holds `1\.png` and `cat/2\.png`"),
        ("deep", {}, r"holds `train/cat/1\.png`"),
        ("datasets:folder", {}, "holds no files that can be read"),
        ("datasets:../no such", {}, "there is no folder"),
        ("builtin:stdlib-docstring", {}, "did you mean `builtin:stdlib-docstrings`"),
        ("builtin:nothing-like-it-at-all", {}, "use one of: builtin:stdlib-docstrings"),
        ("builtin:stdlib-docstrings", {"samples": "all"}, "no `all` of it"),
        ("builtin:stdlib-docstrings", {"label": "label"}, "has no labels"),
        ("evaluation.jsonl", {"split": "test"}, "`split` is for `datasets:` sources"),
        ("evaluation.jsonl", {"subset": "x"}, "`subset` is for `datasets:` sources"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(
    tmp_path: Path, source: str, spec: dict[str, Any], message: str
) -> None:
    write_lines(tmp_path / "evaluation.jsonl", {"text": "a"})
    write_lines(tmp_path / "tables/a.jsonl", {"text": "a"})
    for name in ("empty.jsonl", "a.xlsx", "nameless"):
        (tmp_path / name).write_text("" if name == "empty.jsonl" else "x")
    (tmp_path / "folder").mkdir()
    for name in ("mixed/1.png", "mixed/cat/2.png", "deep/train/cat/1.png"):
        _picture(tmp_path / name)
    with pytest.raises(RecipeError, match=message) as caught:
        _resolve(tmp_path, source, **spec)
    assert caught.value.where == WHERE


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("a.parquet", "pyarrow", "data"),
        ("im", "pillow", "vision"),
        ("datasets:im", "datasets", "data"),
    ],
)
def test_a_package_that_is_not_installed_is_named_when_the_plan_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str, extra: str
) -> None:
    (tmp_path / "a.parquet").write_text("x")
    _picture(tmp_path / "im/1.png")
    monkeypatch.setattr("pipeline.data_source.find_package", lambda _: None)
    with pytest.raises(EnvironmentMissing, match=f"needs the package `{package}`") as caught:
        _resolve(tmp_path, source)
    assert caught.value.hint == f"pip install 'convert-pipeline[{extra}]'"
    assert caught.value.where == WHERE
