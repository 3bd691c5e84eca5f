from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.engines.facts_file import (
    FACTS_FILE,
    EngineFacts,
    facts_path,
    read_engine_facts,
    require_engine_of_facts,
    write_engine_facts,
)
from pipeline.errors import ArtifactError
from pipeline.hashing import sha256_bytes

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = b"vtrt" + bytes(96)


def _document(**changes: Any) -> dict[str, Any]:
    profile = {"axes": {"batch": [1, 8, 32]}, "inputs": {"x": [[1, 4], [8, 4], [32, 4]]}}
    return {
        "runtime": "tensorrt-rtx",
        "version": "1.7.1.116",
        "target": "sm89",
        "precision": "fp16",
        "profiles": [profile],
        "inputs": [{"name": "x", "dtype": "int64", "dims": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "dims": ["batch", 4]}],
        "layer_fingerprint": "0" * 64,
        "size_bytes": len(ENGINE),
        "sha256": sha256_bytes(ENGINE),
    } | changes


def _write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    facts = EngineFacts.model_validate_json(json.dumps(_document()))
    path = tmp_path / FACTS_FILE
    write_engine_facts(facts, path)
    first = path.read_bytes()
    assert read_engine_facts(path) == facts
    write_engine_facts(read_engine_facts(path), path)
    assert path.read_bytes() == first
    assert facts.profiles[0].inputs["x"] == ((1, 4), (8, 4), (32, 4))


def _broken_order() -> dict[str, Any]:
    profile = {"axes": {}, "inputs": {"x": [[8, 4], [1, 4], [32, 4]]}}
    return _document(profiles=[profile])


def _axes(*sizes: int) -> dict[str, Any]:
    profile = {"axes": {"batch": list(sizes)}, "inputs": {"x": [[1, 4], [8, 4], [32, 4]]}}
    return _document(profiles=[profile])


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "these are not the facts of an engine"),
        (_document(runtime="onnxruntime"), "`runtime`"),
        (_document(sha256="abc"), "`sha256`"),
        (_document(profiles=[]), "`profiles`"),
        (_document(inputs=[]), "profile 0 is of other inputs"),
        (_broken_order(), "profile 0 does not hold min <= opt <= max for x"),
        (_axes(9, 5, 1), "profile 0 does not hold min <= opt <= max for axis batch"),
        (_axes(1, 8, 64), "profile 0 gives axis batch and input x other sizes"),
        (_document(format=2), "`format`"),
        (_document(surprise=1), "`surprise`"),
    ],
)
def test_what_are_no_facts_is_refused(tmp_path: Path, document: object, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        read_engine_facts(_write(tmp_path / "model.sm89.engine.json", document))


@pytest.mark.parametrize("text", ["", '{"runtime": ', "\ud800".encode("utf-16", "surrogatepass")])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / FACTS_FILE
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ArtifactError, match="not the facts of an engine"):
        read_engine_facts(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        read_engine_facts(tmp_path / FACTS_FILE)


def test_an_engine_is_held_against_its_facts(tmp_path: Path) -> None:
    facts = EngineFacts.model_validate_json(json.dumps(_document()))
    engine = tmp_path / "model.sm89.engine"
    engine.write_bytes(ENGINE)
    require_engine_of_facts(facts, engine)
    engine.write_bytes(ENGINE[:-1] + b"x")
    with pytest.raises(ArtifactError, match="digest is"):
        require_engine_of_facts(facts, engine)
    engine.write_bytes(ENGINE[:-1])
    with pytest.raises(ArtifactError, match="has 99 bytes, and its facts say 100"):
        require_engine_of_facts(facts, engine)


def test_facts_lie_beside_their_engine(tmp_path: Path) -> None:
    assert facts_path(tmp_path / "model.sm89.engine").name == "model.sm89.engine.json"
    _write(tmp_path / FACTS_FILE, _document())
    assert facts_path(tmp_path / "model.engine").name == FACTS_FILE
