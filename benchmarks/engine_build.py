"""What the engine stage costs beside the bare builder, and what its engines hold.

    .venv/bin/python benchmarks/engine_build.py [--rounds 3] [--large-gb 1.4]

Time: MiniLM in fp16, the stage and a bare build (parse, build, write) in turns, each in a process of
its own that has imported nothing; the ratio of the medians, and of each round. Both count from the start
of their processes; beside it the stage in a process that is ready, as a worker is, whose imports are done
ahead. Memory: a stack of fp16 products with random weights; the largest
sum of resident memory over the tree of processes. Engines: size of INT8 against fp16, precision of
the products, fused attentions and activations at (32, 512). Nothing needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx  # noqa: TID251 - it writes a graph of its own
import psutil
from minilm_stages import PROFILE, minilm_results
from onnx import TensorProto, helper  # noqa: TID251

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 4096
BARE = """
import json, sys
import tensorrt_rtx as trt
model, engine, profile = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
class Log(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self)
    def log(self, severity, message): pass
log = Log()
builder = trt.Builder(log)
builder.max_threads = 1
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, log).parse_from_file(model)
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
shapes = builder.create_optimization_profile()
for name, (low, mid, high) in profile.items():
    shapes.set_shape(name, low, mid, high)
config.add_optimization_profile(shapes)
open(engine, "wb").write(builder.build_serialized_network(network, config))
"""
STAGE = """
import importlib, json, sys, time
from pathlib import Path
from pipeline.stages.engine import ENGINE, EngineConfig
for name in ENGINE.preload if sys.argv[5] == "ready" else (): importlib.import_module(name)
class Context:
    threads, resumable = 1, None
    def __init__(self, scratch): self.scratch = scratch
    def progress(self, *_): pass
    def log(self, message): print(message)
root = Path(sys.argv[2]); (root / "out").mkdir(); (root / "scratch").mkdir()
profiles = tuple({a: tuple(v) for a, v in p.items()} for p in json.loads(sys.argv[3]))
config = EngineConfig(compute_capability="sm89", precision=sys.argv[4], profiles=profiles)
started = time.perf_counter()
facts = ENGINE.run(config, {"model": Path(sys.argv[1])}, root / "out", Context(root / "scratch"))
(root / "seconds").write_text(str(time.perf_counter() - started))
(root / "facts.json").write_text(json.dumps(facts))
"""


def run(command: list[str]) -> tuple[float, int]:
    """Seconds it took, and the largest sum of resident memory of its processes, bytes."""
    start = time.perf_counter()
    environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"}  # as `convert` sets it
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    peak = 0
    while process.poll() is None:
        try:
            tree = [psutil.Process(process.pid)]
            tree += tree[0].children(recursive=True)
            peak = max(peak, sum(p.memory_info().rss for p in tree))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command[2][:20]!r}... ended with {process.returncode}")
    return time.perf_counter() - start, peak


def bare(model: Path, profile: object, root: Path) -> tuple[float, int]:
    """The bare build."""
    root.mkdir()
    engine = str(root / "bare.engine")
    command = [sys.executable, "-c", BARE, str(model / "model.onnx"), engine, json.dumps(profile)]
    return run(command)


def stage(
    model: Path, axes: object, precision: str, root: Path, *, is_ready: bool = False
) -> tuple[float, int]:
    """Seconds of the stage with its process's start and imports, or without when it is ready; peak."""
    root.mkdir()
    kind = "ready" if is_ready else "cold"
    axes_json = json.dumps([axes])
    command = [sys.executable, "-c", STAGE, str(model), str(root), axes_json, precision, kind]
    whole_s, peak = run(command)
    return (float((root / "seconds").read_text("utf-8")) if is_ready else whole_s), peak


def make_minilm(root: Path) -> tuple[Path, Path]:
    """MiniLM in fp16 and in INT8, through our own stages: their directories."""
    sys.path.insert(0, str(ROOT))
    minilm_results(root, evaluation=8)
    graphs = {file.parent.name: file.parent for file in root.rglob("artifacts/**/model.onnx")}
    return graphs["fp16"], graphs["int8"]


def make_large(gigabytes: float, directory: Path) -> Path:
    """A stack of products whose fp16 weights, beside the graph, take so many gigabytes."""
    directory.mkdir()
    layers = round(gigabytes * 1e9 / (2 * WIDTH * WIDTH))
    rng = np.random.default_rng(0)
    tensors, nodes, last = [], [], "x"
    with (directory / "model.onnx_data").open("wb") as data:
        for index in range(layers):
            content = (rng.standard_normal((WIDTH, WIDTH), np.float32) / 64).astype(np.float16)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT16)
            tensor.dims.extend((WIDTH, WIDTH))
            tensor.data_location = TensorProto.EXTERNAL
            size = content.nbytes
            place = {"location": "model.onnx_data", "offset": data.tell(), "length": size}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(content.tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
            last = f"r{index}" if index < layers - 1 else "y"
            nodes.append(helper.make_node("Relu", [f"m{index}"], [last], name=f"relu{index}"))
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", WIDTH])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "stack", value[:1], value[1:], tensors)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=10), directory / "model.onnx"
    )
    return directory


def main() -> None:
    """Measure, and print one line for each figure with its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-gb", type=float, default=1.4, help="0 leaves memory out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fp16, int8 = make_minilm(root)
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {
            i.name for i in onnx.load(fp16 / "model.onnx", load_external_data=False).graph.input
        }
        shapes = {
            name: [list(sizes) for sizes in zip(*PROFILE.values(), strict=True)]
            for name in names
            if name in inputs
        }
        times: dict[str, list[float]] = {"bare": [], "stage": [], "ready": []}
        for number in range(options.rounds):
            times["bare"].append(bare(fp16, shapes, root / f"bare{number}")[0])
            times["stage"].append(stage(fp16, PROFILE, "fp16", root / f"stage{number}")[0])
            ready = root / f"ready{number}"
            times["ready"].append(stage(fp16, PROFILE, "fp16", ready, is_ready=True)[0])
        bare_s, stage_s, ready_s = (statistics.median(seconds) for seconds in times.values())
        rounds = zip(times["stage"], times["bare"], strict=True)
        print(
            f"build: bare {bare_s:.2f} s, stage {stage_s:.2f} s: {stage_s / bare_s:.2f} (<= 1.3; "
            f"rounds {', '.join(f'{ours / theirs:.2f}' for ours, theirs in rounds)}); "
            f"in a ready worker {ready_s:.2f} s: {ready_s / bare_s:.2f}"
        )
        stage(int8, PROFILE, "int8", root / "int8")
        facts = {
            "fp16": json.loads((root / "stage0" / "facts.json").read_text("utf-8")),
            "int8": json.loads((root / "int8" / "facts.json").read_text("utf-8")),
        }
        sizes = {name: fact["size_bytes"] for name, fact in facts.items()}
        print(f"size: {sizes}: {sizes['int8'] / sizes['fp16']:.3f} (<= 0.85)")
        for name, fact in facts.items():
            print(
                f"{name}: {fact['gemm_kinds']}, {fact['fused_attention']} of "
                f"{fact['attention_blocks']} attentions fused, "
                f"{fact['activation_memory_bytes'] / 1e6:.1f} MB of activations (<= 115), "
                f"{fact['copy_layers']} copies, {fact['layers']} layers"
            )
        if options.large_gb:
            large = make_large(options.large_gb, root / "large")
            axes = {"batch": (1, 8, 32)}
            x = {"x": [[size, WIDTH] for size in axes["batch"]]}
            peaks = [bare(large, x, root / "bare-large")[1]]
            peaks.append(stage(large, axes, "fp16", root / "stage-large")[1])
            first, second = (peak / 2**30 for peak in peaks)
            print(
                f"memory: bare {first:.2f} GiB, stage {second:.2f} GiB: {second / first:.2f} (<= 1.1)"
            )


if __name__ == "__main__":
    main()
