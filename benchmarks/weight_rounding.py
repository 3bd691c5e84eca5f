"""What 4 bits lose by our methods, beside ONNX Runtime's quantiser and NNCF, on one trained decoder.

    .venv/bin/python benchmarks/weight_rounding.py --work /var/tmp/rounding --model FOLDER

FOLDER holds `checkpoint/`, `test.jsonl` and `calibration.jsonl`, as `scripts/train_tiny_lm` writes them. Ours are
targets of a recipe, converted by the product. The others get the simplified float graph and the same calibration
texts; NNCF runs in an environment of its own, which is made on the first call. Everybody stores products in
blocks of 32, and tables of tokens and activations stay float.

It prints a row for each: perplexity over the float graph's, paired by text, with its 95 % interval, and size of
the model. What a tool cannot do with this graph is a row with its own words (NNCF has no GPTQ for ONNX). Exit code 1 when the best of ours
is worse than the best of the others for certain.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipeline
from benchmarks.decoders import convert
from benchmarks.decoders_quality import Losses, losses, read_texts
from pipeline.stages.base import MODEL_FILE

OURS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "clip": {"method": "clip"},
    "k_quant": {"method": "k_quant"},
    "hqq": {"method": "hqq"},
    "gptq": {"method": "gptq"},
    "awq": {"method": "awq"},
    "rtn-zero-points": {"method": "rtn", "symmetric": False},
    "clip-zero-points": {"method": "clip", "symmetric": False},
    "hqq-zero-points": {"method": "hqq", "symmetric": False},
}
OTHERS = (
    *("onnxruntime-rtn", "onnxruntime-zero-points", "onnxruntime-hqq", "onnxruntime-k-quant"),
    *("onnxruntime-gptq", "nncf-rtn", "nncf-zero-points", "nncf-scales", "nncf-awq"),
)
CALIBRATION_TEXTS = 64
PEER = Path(__file__).with_name("weight_rounding_peer.py")
PEER_REQUIREMENTS = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0")


def parse_arguments() -> argparse.Namespace:
    """What to measure, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint and texts")
    return parser.parse_args()


def convert_ours(model: Path, work: Path) -> dict[str, Path]:
    """Our graphs by name, as one artifact holds them; nothing is gated."""
    quantization = {"mode": "weight_only", "block_size": 32, "accuracy_level": 0}
    recipe = work / "recipe.yaml"
    document = {
        "recipe": 1,
        "name": "rounding",
        "model": {"source": str(model / "checkpoint"), "task": "text-generation"},
        "shapes": {
            "batch": {"min": 1, "opt": 1, "max": 2},
            "sequence": {"min": 2, "opt": 16, "max": 32},
        },
        "data": {
            "evaluation": {"source": str(model / "test.jsonl"), "samples": 4},
            "calibration": {
                "source": str(model / "calibration.jsonl"),
                "samples": CALIBRATION_TEXTS,
            },
        },
        "targets": [
            {
                "name": name,
                "runtime": "onnxruntime",
                "precision": "int4",
                "quantization": quantization | asked,
            }
            for name, asked in OURS.items()
        ],
        "benchmark": None,
        "gates": {"parity": {"relative_l2": {"max": 10}}},
    }
    recipe.write_text(json.dumps(document), encoding="utf-8")
    artifact = pipeline.convert(recipe, output=work / "artifacts")
    return {f"ours-{name}": artifact.target(name) / MODEL_FILE for name in OURS}


def convert_others(model: Path, work: Path) -> tuple[Path, dict[str, Path]]:
    """The float graph that they start from, and what each made of it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "checkpoint/tokenizer.json"))
    lines = (model / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = [tokenizer.encode(json.loads(line)["text"]).ids[:32] for line in lines]
    texts = {str(n): np.array([text]) for n, text in enumerate(tokens[:CALIBRATION_TEXTS])}
    np.savez(work / "calibration.npz", **texts)
    convert(model / "checkpoint", work, {"block_size": 32, "method": "rtn"})
    source, python = work / "simplify" / MODEL_FILE, work / "nncf/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "nncf")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PEER_REQUIREMENTS], check=True)
    made = {}
    for tool in OTHERS:
        run = str(python) if tool.startswith("nncf") else sys.executable
        result = work / f"{tool}.onnx"
        command = [run, str(PEER), tool, str(source), str(work / "calibration.npz"), str(result)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        if ended.returncode:
            print(f"{tool}: {(ended.stderr.strip().splitlines() or ['no words'])[-1]}")
        else:
            made[tool] = result
    return source, made


def main() -> int:
    """Convert, measure, print, and return the exit code."""
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    source, graphs = convert_others(arguments.model, arguments.work)
    graphs |= convert_ours(arguments.model, arguments.work)
    config = json.loads((arguments.model / "checkpoint/config.json").read_text(encoding="utf-8"))
    sizes = (config["num_key_value_heads"], config["head_dim"])
    texts = read_texts(arguments.model, config["max_position_embeddings"])
    exact = losses(source, texts, sizes)
    print(
        f"{len(texts)} texts, {int(exact.tokens.sum())} tokens, perplexity {exact.perplexity:.4f}"
    )
    found: dict[str, Losses] = {}
    for name, path in graphs.items():
        try:
            found[name] = losses(path, texts, sizes)
        except Exception as err:  # noqa: BLE001  (ONNX Runtime's errors have no class of their own)
            print(f"{name}: {str(err).splitlines()[0]}")
            continue
        ratio, low, high = found[name].over(exact)
        size = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
        print(f"{name}: {ratio:.4f} ({low:.4f} to {high:.4f}), {size / 1000:,.0f} kB")
    ours = min((n for n in found if n.startswith("ours")), key=lambda n: found[n].perplexity)
    theirs = min((n for n in found if not n.startswith("ours")), key=lambda n: found[n].perplexity)
    ratio, low, high = found[ours].over(found[theirs])
    print(f"{ours} over {theirs}: {ratio:.4f} ({low:.4f} to {high:.4f})")
    if low > 1:
        print("FAILED: the best of ours is worse for certain")
        return 1
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
