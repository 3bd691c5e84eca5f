"""Recipes for tests, as data; JSON is YAML, so they are written with `json`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

FP32 = {"name": "cpu-fp32", "runtime": "onnxruntime", "precision": "fp32"}
INT8 = {
    "name": "cpu-int8",
    "runtime": "onnxruntime",
    "precision": "int8",
    "quantization": {"mode": "dynamic", "per_channel": True},
}
RTX = {
    "name": "rtx-fp16",
    "runtime": "tensorrt-rtx",
    "precision": "fp16",
    "compute_capability": ["sm89"],
}


def recipe(checkpoint: Path | str, **changes: Any) -> dict[str, Any]:
    """A small recipe for a sentence encoder; `changes` replace whole top-level keys."""
    document: dict[str, Any] = {
        "recipe": 1,
        "name": "tiny",
        "model": {"source": str(checkpoint), "task": "feature-extraction"},
        "shapes": {
            "batch": {"min": 1, "opt": 2, "max": 4},
            "sequence": {"min": 2, "opt": 8, "max": 16},
        },
        "data": {"evaluation": {"source": "builtin:stdlib-docstrings", "samples": 6, "seed": 0}},
        "targets": [copy.deepcopy(FP32)],
        # A tiny model's speed says nothing, and its int8 twin is coarse.
        "gates": {"parity": {"cosine_similarity": {"min": 0.8}}},
        "benchmark": None,
    }
    document.update(copy.deepcopy(changes))
    return document


def write_recipe(path: Path, checkpoint: Path | str, **changes: Any) -> Path:
    """Write a recipe file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe(checkpoint, **changes), indent=2), encoding="utf-8")
    return path


def forget(store: Path, *stages: str) -> None:
    """Take the records of some stages out of a store, so that these must run again."""
    for path in (store / "v1/ac").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        if any(f'"stage":"{stage}"' in text for stage in stages):
            path.unlink()
