"""A real tiny artifact, and what can be made of it without a GPU."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.facts_file import (
    EngineFacts,
    ProfileFacts,
    TensorFacts,
    facts_path,
    write_engine_facts,
)
from pipeline.foreign_models import read_model
from pipeline.hashing import sha256_file
from pipeline.manifest import scan_directory
from tests.recipes import FP32, INT8, write_recipe


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Path:
    """A sentence encoder for ONNX Runtime, fp32 and int8; read only."""
    from pipeline.build import BuildOptions, build
    from pipeline.recipe import load_recipe_file

    folder = tmp_path_factory.mktemp("bundled")
    gates = {"parity": {"cosine_similarity": {"min": 0.5}}}
    path = write_recipe(folder / "r.yaml", sentence_encoder, targets=[FP32, INT8], gates=gates)
    options = BuildOptions(output=folder / "artifacts", store=folder / "store", threads=1)
    result = build(load_recipe_file(path), options)
    assert result.verdict == "passed", result.reasons
    return (folder / "artifacts" / "tiny" / "latest").resolve()


def remake(artifact: Path, copy: Path, change: Callable[[Path, dict[str, Any]], object]) -> Path:
    """A copy of an artifact that is whole again after a change of its files and of its manifest."""
    shutil.copytree(artifact, copy)
    document = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    change(copy, document)
    report = json.loads((copy / "report.json").read_text())
    for key in ("name", "version", "verdict", "created_at"):
        report[key] = document[key]
    (copy / "report.json").write_text(json.dumps(report))
    manifest = scan_directory(copy)
    document |= {"files": json.loads(manifest.to_json()), "files_digest": manifest.digest}
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


def add_engine(
    folder: Path, target: str, *, magic: bytes = b"ftrt", batches: tuple[int, ...] = (4,)
) -> Path:
    """A file with the header of an engine and the facts beside it; no engine that could run."""
    engine = folder / f"model.{target}.engine"
    second = magic if magic == b"vtrt" else bytes(4)
    head = struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, 100, 11, 4, 0, 9, second, 8, 0, 0, 30)
    engine.write_bytes(head + bytes(36))
    graph = read_model(folder / "model.onnx")
    profiles = tuple(
        ProfileFacts(
            axes={"batch": (1, max(1, batch // 2), batch), "sequence": (2, 8, 16)},
            inputs={t.name: ((1, 2), (max(1, batch // 2), 8), (batch, 16)) for t in graph.inputs},
        )
        for batch in batches
    )
    facts = EngineFacts(
        runtime="tensorrt" if magic == b"ftrt" else "tensorrt-rtx",
        version="11.4.0.9",
        target=target,
        precision="fp32",
        profiles=profiles,
        inputs=tuple(TensorFacts(name=t.name, dtype=t.dtype, dims=t.shape) for t in graph.inputs),
        outputs=tuple(
            TensorFacts(name=t.name, dtype=t.dtype, dims=t.shape) for t in graph.outputs
        ),
        layer_fingerprint="ab" * 32,
        size_bytes=engine.stat().st_size,
        sha256=sha256_file(engine),
    )
    write_engine_facts(facts, facts_path(engine))
    return engine


def with_engines(
    artifact: Path,
    copy: Path,
    *targets: str,
    magic: bytes = b"ftrt",
    batches: tuple[int, ...] = (4,),
) -> Path:
    """The artifact with engines in `cpu-fp32`, which is declared as a target of TensorRT."""

    def change(folder: Path, document: dict[str, Any]) -> None:
        declared = document["recipe"]["targets"][0]
        declared["runtime"] = "tensorrt" if magic == b"ftrt" else "tensorrt-rtx"
        for target in targets:
            add_engine(folder / "cpu-fp32", target, magic=magic, batches=batches)

    return remake(artifact, copy, change)
