"""Artifacts of encoders with decoders, whose graphs are made by the stages themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.hashing import sha256_file
from pipeline.source.selection import companion_names
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.bundle.conftest import seal
from tests.pairs import SPEECH, TEXTS, build_pair
from tests.recipes import INT8
from tests.stages.context import RecordingContext


def artifact_of_pair(
    root: Path,
    family: str,
    *targets: dict[str, Any],
    checkpoint: Path | None = None,
    **changes: Any,
) -> Path:
    """An artifact of a tiny pair with random weights or of a checkpoint; in 8 bits too if asked for."""
    task = SPEECH if family == "whisper" else TEXTS
    checkpoint = checkpoint or build_pair(root / "checkpoint", family, **changes)
    context = RecordingContext(root, threads=2)
    for part in ("encoder", "decoder"):
        made = {name: root / part / name for name in ("export", "simple", "int8")}
        for folder in made.values():
            folder.mkdir(parents=True)
        config = ExportConfig(task=task, component=part)
        EXPORT.run(config, {"checkpoint": checkpoint}, made["export"], context)
        SIMPLIFY.run(SimplifyConfig(), {"model": made["export"]}, made["simple"], context)
        if INT8 in targets:
            ports, config8 = {"model": made["simple"]}, QuantizeDynamicConfig(per_channel=True)
            QUANTIZE_DYNAMIC.run(config8, ports, made["int8"], context)
        for target in targets:
            name = "int8" if target == INT8 else "simple"
            folder = root / "artifact" / str(target["name"]) / part
            folder.mkdir(parents=True)
            for file in made[name].glob("model.onnx*"):
                shutil.copyfile(file, folder / file.name)
    for target in targets:
        for name in companion_names(checkpoint):
            shutil.copyfile(checkpoint / name, root / "artifact" / str(target["name"]) / name)
    document = {
        "schema_version": 1,
        "name": "pair",
        "version": "0123456789ab",
        "verdict": "passed",
        "reasons": [],
        "created_at": "2026-01-01T00:00:00+00:00",
        "build_digest": "ab" * 32,
        "recipe": {"model": {"source": str(checkpoint), "task": task}, "targets": list(targets)},
        "source": {
            "source": str(checkpoint),
            "files": {
                path.name: sha256_file(path) for path in sorted(checkpoint.glob("*.safetensors"))
            },
        },
        "environment": {},
    }
    return seal(root / "artifact", document)
