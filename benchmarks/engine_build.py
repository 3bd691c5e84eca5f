"""What the engine stage costs beside the bare builder, and what its engines hold.

    .venv/bin/python benchmarks/engine_build.py [--rounds 3] [--large-gb 1.4]

Time: MiniLM in fp16, the stage and a bare build (import, parse, build, write) in turns, each in a process
of its own; the ratio of the medians, and of each round. The stage runs as builds run it: its worker is
asked for when its time begins, and forked by a nursery (docs/decisions/0010) that the graph stages before
it have started. Beside it a second bare build, for the noise, and the stage in a process started anew.
Memory: a stack of fp16 products with random weights; the largest sum of resident memory over the tree of
processes. Engines: size of INT8 against fp16, precision of the products, fused attentions and activations
at (32, 512). Nothing needs a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx  # noqa: TID251 - it writes a graph of its own
import psutil
from minilm_stages import PROFILE, minilm_results
from onnx import TensorProto, helper  # noqa: TID251

from pipeline.run.process import WorkerProcess
from pipeline.stages.engine import ENGINE, EngineConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 4096
GROUP = "graphs"
"""The nursery of stages without torch."""
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


@contextlib.contextmanager
def watched_memory() -> Iterator[list[int]]:
    """The largest sum of resident memory of this process's children, bytes, as its only item."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process().children(recursive=True)
                peak[0] = max(peak[0], sum(child.memory_info().rss for child in children))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def bare(model: Path, profile: object, root: Path) -> float:
    """Seconds of the bare build, from the start of its process to the engine on disk."""
    root.mkdir()
    engine = str(root / "bare.engine")
    command = [sys.executable, "-c", BARE, str(model / "model.onnx"), engine, json.dumps(profile)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def stage(model: Path, axes: object, precision: str, root: Path, *, group: str = GROUP) -> float:
    """Seconds of the stage, from the request for its worker to the end of its process.

    A nursery of `group` forks it, as in builds; it is started anew when that is empty.
    """
    for name in ("out", "scratch"):
        (root / name).mkdir(parents=True)
    config = EngineConfig(compute_capability="sm89", precision=precision, profiles=(axes,))
    job = {
        "stage": ENGINE.name,
        "config": config.model_dump_json(),
        "inputs": {"model": str(model)},
        "output": str(root / "out"),
        "scratch": str(root / "scratch"),
        "threads": 1,
    }
    start = time.perf_counter()
    worker = WorkerProcess(ENGINE.preload, 1, group)
    ending = worker.run(job, time_s=600, memory_limit_mib=None, on_progress=lambda *_: None)
    seconds = time.perf_counter() - start
    if ending.facts is None:
        raise SystemExit("\n".join((*ending.last_lines, ending.message)))
    (root / "facts.json").write_text(json.dumps(ending.facts), "utf-8")
    return seconds


def make_minilm(root: Path) -> tuple[Path, Path]:
    """MiniLM in fp16 and in INT8, through our own stages: their directories."""
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
        stage(fp16, PROFILE, "fp16", root / "first")  # starts the nursery
        times: dict[str, list[float]] = {"bare": [], "stage": [], "again": [], "anew": []}
        for number in range(options.rounds):
            turn = root / f"round{number}"
            turn.mkdir()
            times["bare"].append(bare(fp16, shapes, turn / "bare"))
            times["stage"].append(stage(fp16, PROFILE, "fp16", turn / "stage"))
            times["again"].append(bare(fp16, shapes, turn / "again"))
            times["anew"].append(stage(fp16, PROFILE, "fp16", turn / "anew", group=""))
        bare_s, stage_s, again_s, anew_s = map(statistics.median, times.values())
        rounds = zip(times["stage"], times["bare"], strict=True)
        print(
            f"build: bare {bare_s:.2f} s, stage {stage_s:.2f} s: {stage_s / bare_s:.2f} (<= 1.3; "
            f"rounds {', '.join(f'{ours / theirs:.2f}' for ours, theirs in rounds)}; "
            f"bare again {again_s / bare_s:.2f}); "
            f"in a process started anew {anew_s:.2f} s: {anew_s / bare_s:.2f}"
        )
        stage(int8, PROFILE, "int8", root / "int8")
        facts = {
            "fp16": json.loads((root / "first" / "facts.json").read_text("utf-8")),
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
            with watched_memory() as theirs:
                bare(large, x, root / "bare-large")
            with watched_memory() as ours:
                stage(large, axes, "fp16", root / "stage-large", group="")
            first, second = theirs[0] / 2**30, ours[0] / 2**30
            print(
                f"memory: bare {first:.2f} GiB, stage {second:.2f} GiB: {second / first:.2f} (<= 1.1)"
            )


if __name__ == "__main__":
    main()
