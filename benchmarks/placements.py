"""Where 8 bits go: our placement for TensorRT beside those of ONNX Runtime and ModelOpt.

    .venv/bin/python benchmarks/placements.py [--peer-venv /var/tmp/modelopt]

MiniLM, one simplified graph for all, the same calibration samples. Every graph becomes an engine by our
own stage (sm89, at most 32 x 512), and is compared with the float graph on the CPU as it is written,
without optimisations, on real texts. A row a tool; what cannot become an engine says why. Without
`--peer-venv` ModelOpt is left out; the environment is made on the first call. Nothing needs a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from minilm_stages import PROFILE, minilm_results

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 128
"""Of calibration samples, padded: other tools want one length."""

MODELOPT = (
    "nvidia-modelopt==0.47.0",
    *("onnx-graphsurgeon", "onnxconverter-common", "nvidia-ml-py", "lief"),
)
"""Without their dependencies, which pin older versions of what is in our environment."""


class Context:
    """What a stage asks of its process."""

    threads, resumable = 2, None

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def progress(self, *_: object) -> None:
        """Nobody is watching."""

    def log(self, _: str) -> None:
        """Nobody is reading."""


def write_calibration(samples: Path, names: list[str], path: Path) -> None:
    """The calibration samples, padded to one length."""
    from pipeline.data.sample_set import load_samples

    loaded = load_samples(samples)
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for sample in loaded.read(range(len(loaded))):
        for name in names:
            row = sample[name][:LENGTH]
            arrays[name].append(np.pad(row, (0, LENGTH - len(row))))
    np.savez(path, **{name: np.stack(rows) for name, rows in arrays.items()})


def cosines(model: Path, float_model: Path, samples: Path) -> tuple[float, float]:
    """Mean and smallest cosine of a token's output with the float graph's."""
    from pipeline.data.sample_set import load_samples

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for path in (float_model, model)
    ]
    loaded, found = load_samples(samples), []
    for sample in loaded.read(range(len(loaded))):
        feeds = {i.name: sample[i.name][None] for i in sessions[0].get_inputs()}
        wanted, given = (
            session.run(["last_hidden_state"], feeds)[0][0].astype(np.float64)
            for session in sessions
        )
        norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(given, axis=1)
        found.append((wanted * given).sum(axis=1) / norms)
    every = np.concatenate(found)
    return float(every.mean()), float(every.min())


def build(model: Path, precision: str, root: Path) -> dict[str, Any]:
    """What the engine stage says of a graph's engine."""
    from pipeline.stages.engine import ENGINE, EngineConfig

    (root / "out").mkdir(parents=True)
    (root / "scratch").mkdir()
    config = EngineConfig(compute_capability="sm89", precision=precision, profiles=(PROFILE,))
    return dict(ENGINE.run(config, {"model": model}, root / "out", Context(root / "scratch")))


def make_environment(folder: Path) -> Path:
    """ModelOpt beside the packages of our environment; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (own,) = folder.glob("lib/python3*/site-packages")
        ours = Path(np.__file__).parents[1]
        (own / "ours.pth").write_text(f"{ours}\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *MODELOPT], check=True)
    return python


def say(name: str, text: str) -> None:
    """One line of the table."""
    print(f"{name:24} {text}", flush=True)


def measure(name: str, model: Path, precision: str, nodes: dict[str, Path], root: Path) -> None:
    """One row."""
    from pipeline.errors import PipelineError

    try:
        facts = build(model, precision, root)
    except PipelineError as error:
        say(name, f"no engine: {' '.join(error.message.split())[:230]}")
        return
    mean, least = cosines(model / "model.onnx", nodes["simplify"] / "model.onnx", nodes["samples"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["gemm_kinds"].items())
    say(
        name,
        f"{facts['layers']:>4} layers, {facts['fused_attention']} of "
        f"{facts['attention_blocks']} attentions, "
        f"{facts['activation_memory_bytes'] / 1e6:6.1f} MB activations, "
        f"{facts['size_bytes'] / 1e6:5.1f} MB, {facts['copy_layers']:>2} copies, cosine "
        f"{mean:.4f} (worst {least:.3f}); {kinds}",
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-venv", type=Path, help="ModelOpt's environment; made when missing")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    python = Path(sys.executable)
    tools = ["onnxruntime", "onnxruntime-symmetric"]
    if options.peer_venv is not None:
        python = make_environment(options.peer_venv.absolute())
        tools.append("modelopt")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        nodes = minilm_results(root, evaluation=16)
        (ours,) = (path for name, path in nodes.items() if name.startswith("quantize_static"))
        half = next(path for name, path in nodes.items() if name.startswith("cast"))
        measure("fp16, not quantised", half, "fp16", nodes, root / "fp16")
        measure("convert", ours, "int8", nodes, root / "ours")
        graph = nodes["simplify"] / "model.onnx"
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        calibration = root / "calibration.npz"
        names = [i.name for i in session.get_inputs()]
        write_calibration(nodes["samples@calibration"], names, calibration)
        for tool in tools:
            made = root / f"made-{tool}"
            made.mkdir()
            command = [python, ROOT / "benchmarks/placements_peer.py", tool, graph, calibration]
            done = subprocess.run(
                [*command, made / "model.onnx"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                say(tool, f"it failed: {last[:200]}")
                continue
            measure(tool, made, "int8", nodes, root / f"engine-{tool}")


if __name__ == "__main__":
    main()
