"""Small artifacts, published as a build publishes them, with files that stand for models."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.hashing import sha256_bytes
from pipeline.publish import (
    ArtifactFile,
    artifact_directory,
    draft_artifact,
    fill_draft,
    point_latest,
    publish_draft,
)
from tests.recipes import FP32, RTX, recipe

CONTENT = b"stands for a model"


def publish(
    output: Path,
    version: str = "0123456789ab",
    *,
    name: str = "tiny",
    verdict: str = "passed",
    created_at: str = "2026-01-01T00:00:00+00:00",
) -> Path:
    """Publish an artifact of two targets, and let `latest` lead to it when it passed."""
    output.mkdir(parents=True, exist_ok=True)
    source = output.parent / "model-to-publish"
    source.write_bytes(CONTENT)
    files = tuple(
        ArtifactFile(
            source=source, path=path, sha256=sha256_bytes(CONTENT), size_bytes=len(CONTENT)
        )
        for path in ("cpu-fp32/model.onnx", "rtx-fp16/model.onnx", "rtx-fp16/model.sm89.engine")
    )
    said = {"name": name, "version": version, "verdict": verdict, "created_at": created_at}
    with draft_artifact(output, name) as draft:
        fill_draft(draft, files)
        (draft / "report.json").write_text(json.dumps(said))
        (draft / "recipe.yaml").write_text("recipe: 1\n")
        directory = publish_draft(
            draft,
            artifact_directory(output / name, version, has_passed=verdict == "passed"),
            files=files,
            facts={
                **said,
                "build_digest": version + "0" * 52,
                "reasons": [] if verdict == "passed" else ["cpu-fp32: parity gate"],
                "summary": "",
                "recipe": recipe("checkpoint", name=name, targets=[FP32, RTX]),
                "source": {"source": "checkpoint", "revision": None, "files": {}},
                "environment": {
                    "python": "3.11.7",
                    "platform": "linux-x86_64",
                    "cpu_model": "a CPU",
                    "packages": {"onnx": "1.23.2"},
                },
                "stage_keys": {},
            },
        )
    source.unlink()
    if verdict == "passed":
        point_latest(directory)
    return directory


def edit_manifest(directory: Path, **changes: object) -> None:
    """Change what a manifest says; a key that is changed to None is left out."""
    path = directory / "manifest.json"
    document = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in document.items() if value is not None}
    path.write_text(json.dumps(kept))
