"""A real tiny artifact, and what can be made of it without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
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
from pipeline.source.selection import companion_names
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, INT8, write_recipe
from tests.stages.context import RecordingContext
from tests.trained.lm import byte_tokenizer

OPTIMUM = (
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "huggingface_hub==0.36.2",
)
"""The newest that optimum-onnx 0.1 allows."""
TRANSFORMERS_JS = "4.3.1"
INT4 = {
    "name": "cpu-int4",
    "runtime": "onnxruntime",
    "precision": "int4",
    "quantization": {"mode": "weight_only"},
}


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


CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def decoder_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with a tokenizer of bytes, fp32 and int4; read only."""
    root = tmp_path_factory.mktemp("decoder")
    tokenizer = byte_tokenizer()
    checkpoint = build_tiny_llama(
        root / "checkpoint",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(checkpoint)
    return artifact_of_decoder(root, checkpoint)


@pytest.fixture(scope="session")
def optimum_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with Optimum, behind the older packages; skipped where pip cannot."""
    environment = tmp_path_factory.mktemp("optimum") / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", *OPTIMUM]
    if subprocess.run(install, check=False, capture_output=True).returncode != 0:
        pytest.skip("pip cannot install optimum-onnx")
    (site,) = environment.glob("lib/python*/site-packages")
    # Everything else is this environment's, behind the older packages.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with transformers.js; its binary of ONNX Runtime for the CPU is in the package."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    done = subprocess.run(
        ["npm", "install", f"@huggingface/transformers@{TRANSFORMERS_JS}"],
        cwd=folder,
        # Otherwise its script downloads CUDA libraries.
        env=os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot install it: {done.stderr[-300:]}")
    return folder


def artifact_of_decoder(root: Path, checkpoint: Path, **quantization: Any) -> Path:
    """An artifact whose graphs are made by the stages themselves, without a whole build."""
    for name in ("export", "simple", "int4", "artifact"):
        (root / name).mkdir()
    context = RecordingContext(root, threads=2)
    config = ExportConfig(task="text-generation", component="model")
    EXPORT.run(config, {"checkpoint": checkpoint}, root / "export", context)
    SIMPLIFY.run(SimplifyConfig(), {"model": root / "export"}, root / "simple", context)
    ports = {"model": root / "simple"}
    QUANTIZE_WEIGHTS.run(QuantizeWeightsConfig(**quantization), ports, root / "int4", context)
    for target, made in ((FP32, "simple"), (INT4, "int4")):
        folder = root / "artifact" / str(target["name"])
        folder.mkdir()
        for file in (root / made).glob("model.onnx*"):
            shutil.copyfile(file, folder / file.name)
        for name in companion_names(checkpoint):
            shutil.copyfile(checkpoint / name, folder / name)
    document = {
        "schema_version": 1,
        "name": "tiny",
        "version": "0123456789ab",
        "verdict": "passed",
        "reasons": [],
        "created_at": "2026-01-01T00:00:00+00:00",
        "build_digest": "ab" * 32,
        "recipe": {
            "model": {"source": str(checkpoint), "task": "text-generation"},
            "targets": [FP32, INT4],
        },
        "source": {
            "source": str(checkpoint),
            "files": {
                path.name: sha256_file(path) for path in sorted(checkpoint.glob("*.safetensors"))
            },
        },
        "environment": {},
    }
    return seal(root / "artifact", document)


def seal(folder: Path, document: dict[str, Any]) -> Path:
    """Write a report and the manifest that fit what is in a folder."""
    report = {key: document[key] for key in ("name", "version", "verdict", "created_at")}
    (folder / "report.json").write_text(json.dumps(report))
    manifest = scan_directory(folder)
    document |= {"files": json.loads(manifest.to_json()), "files_digest": manifest.digest}
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


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
